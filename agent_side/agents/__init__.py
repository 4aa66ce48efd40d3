"""The reference agents that come with the package: trained policies whose environments have names for everything."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from interlatent_live.agent_side.agents.cartpole import CARTPOLE
from interlatent_live.agent_side.agents.cartpole_reinforce import CARTPOLE_REINFORCE
from interlatent_live.agent_side.agents.g1 import G1
from interlatent_live.agent_side.agents.humanoid import HUMANOID
from interlatent_live.agent_side.agents.lunarlander import LUNARLANDER
from interlatent_live.agent_side.agents.mspacman import MSPACMAN
from interlatent_live.agent_side.agents.reference import ReferenceAgent
from interlatent_live.stream.errors import AgentError

__all__ = ["AGENTS", "ReferenceAgent", "agent_named"]

AGENTS: Mapping[str, ReferenceAgent] = MappingProxyType(
    {agent.name: agent for agent in (CARTPOLE, CARTPOLE_REINFORCE, G1, HUMANOID, LUNARLANDER, MSPACMAN)}
)
"""By name."""


def agent_named(name: str) -> ReferenceAgent:
    """The agent of that name; AgentError lists those there are."""
    agent = AGENTS.get(name)
    if agent is None:
        close = difflib.get_close_matches(name, AGENTS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise AgentError(f"there is no reference agent {name!r}{hint}; there are: {', '.join(AGENTS)}")
    return agent
