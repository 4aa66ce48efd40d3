"""Why a reference agent acts as it does: by the dictionary that ships for it, where there is one."""

from __future__ import annotations

from interlatent_live.agent_side.agents import ReferenceAgent
from interlatent_live.agent_side.attribution import Why
from interlatent_live.analyzer.registry import find
from interlatent_live.stream.errors import DictionaryError

__all__ = ["why_of"]


def why_of(agent: ReferenceAgent) -> Why | None:
    """What to give its tap; None for an agent without a torch policy or a dictionary. One of other weights explains nothing."""
    if agent.make_actor is not None:
        return None
    try:
        return Why(find(agent.dictionary), strict=False)
    except DictionaryError:
        return None
