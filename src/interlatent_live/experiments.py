"""Experiments as the commands run them: the agent's trials, its dictionary, and how much is affordable.

The commands' own module because it needs both the analyzer and the agents, which do not know each other.
"""

from __future__ import annotations

from typing import Any, Final

from interlatent_live.agent_side.agents import ReferenceAgent, agent_named
from interlatent_live.analyzer.candidates import neuron_dictionary
from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.registry import find
from interlatent_live.stream.errors import DictionaryError
from interlatent_live.trials import AgentTrials

__all__ = ["NEURONS", "affordable", "prepare"]

NEURONS: Final = "neurons"
"""Instead of a dictionary: the neurons of the agent's last tap point, or of POINT in 'neurons:POINT'."""


def prepare(agent: str, dictionary: str | None, outcome: str) -> tuple[ReferenceAgent, AgentTrials, Dictionary]:
    """The agent, its trials at the dictionary's tap points, and the dictionary (by default the agent's own)."""
    chosen = agent_named(agent)
    name = dictionary or chosen.dictionary
    if name == NEURONS or name.startswith(f"{NEURONS}:"):
        point = name.partition(":")[2] or chosen.tap_points[-1]
        trials = AgentTrials(chosen, point, point, outcome)
        width = trials.trial(None, [0], max_steps=1, keep=True).y.shape[1]
        return chosen, trials, neuron_dictionary(point, width, trials.model_hash)
    try:
        found = find(name)
    except DictionaryError as error:
        if dictionary is None:
            raise DictionaryError(f"no dictionary of {agent!r} is installed; name one with --dictionary, or use '{NEURONS}'") from error
        raise
    return chosen, AgentTrials(chosen, found.cfg.input, found.cfg.output, outcome), found


def affordable(trials: AgentTrials) -> dict[str, Any]:
    """Options of `SteerOptions` for an agent whose episodes take a second and not a millisecond; {} where all run together."""
    found: dict[str, Any] = {}
    if not trials.together:
        found = {"look": 2, "first": 2, "rounds": 2, "keep": 0.1, "screen": 24, "search_steps": 200}
        found |= {"directions": 5, "others": 5, "doses": 5}
    if trials.outcome.name not in ("return", "steps"):
        found["max_falls"] = 0.05
    return found
