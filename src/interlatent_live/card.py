"""Making a dictionary's card: finds its agent and its held-out episodes, judges, writes the files.

The command's own module because it needs both the analyzer and the agents, which do not know each other.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interlatent_live.agent_side.agents import AGENTS
from interlatent_live.agent_side.weights import weights_hash
from interlatent_live.analyzer.card import judge
from interlatent_live.analyzer.card_page import write_card
from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.recovery import judge_in_life, samples_of_episodes
from interlatent_live.analyzer.rollout import CARD_SEED
from interlatent_live.analyzer.samples import Samples, samples_of
from interlatent_live.analyzer.training import TrainOptions, one_thread
from interlatent_live.analyzer.why_card import agreement_with_ablation
from interlatent_live.rollouts import AgentRollouts
from interlatent_live.stream.errors import AgentError, DictionaryError, DictionaryMismatch
from interlatent_live.stream.reading import Recording

__all__ = ["agent_of", "amend_card", "make_card"]


def agent_of(dictionary: Dictionary) -> str | None:
    """The reference agent with the dictionary's model hash; None where there is none, or it cannot be made here."""
    if not dictionary.cfg.model_hash:
        return None
    for name, agent in AGENTS.items():
        try:
            if weights_hash(agent.make_policy()) == dictionary.cfg.model_hash:
                return name
        except AgentError:
            continue
    return None


def make_card(
    dictionary: Dictionary,
    *,
    recording: Path | None = None,
    agent: str | None = None,
    episodes: int = 100,
    note: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Judge `dictionary` and write card.json, card.md and card.html beside it; `agent` 'none': without rollouts."""
    cfg = dictionary.cfg
    if dictionary.path is None:
        raise DictionaryError(f"{cfg.name!r} was never saved; a card stands beside its dictionary")
    chosen = None if agent == "none" else agent or agent_of(dictionary)
    held: Samples | None = None
    fit: Samples | None = None
    if recording is not None:
        samples = samples_of(Recording(recording), cfg.input, cfg.output)
        for point, values, width in ((cfg.input, samples.x, cfg.d_in), (cfg.output, samples.y, cfg.d_out)):
            if values.shape[1] != width:
                raise DictionaryMismatch(f"{cfg.name!r} expects width {width} at {point!r}; {recording.name} has {values.shape[1]}")
        share, seed = cfg.provenance.get("held_out"), cfg.provenance.get("seed")
        fit, held = samples.split(float(share or TrainOptions().held_out), int(seed or 0))
    command = ["interlatent-live", "dict", "card", dictionary.path.name, "--episodes", str(episodes)]
    command += [] if recording is None else ["--recording", recording.name]
    command += [] if agent is None else ["--agent", agent]
    with one_thread():
        if chosen is not None:
            card = judge_in_life(
                dictionary, AgentRollouts(chosen, cfg.input, cfg.output), episodes=episodes, held=held, fit=fit, note=note
            )
        elif held is not None and fit is not None:
            card = judge(dictionary, held, fit)
        else:
            raise DictionaryError(
                f"no reference agent has the weights that {cfg.name!r} was trained on; judge it on a recording: --recording r.mcap"
            )
    card["card_command"] = shlex.join(command)
    before = dictionary.card or {}
    if "language" in before and before.get("hash") == card.get("hash"):  # measured apart, by interlatent_live.splicing
        card["language"] = before["language"]
    write_card(dictionary.path, card)
    return card


def amend_card(
    dictionary: Dictionary, *, agent: str | None = None, episodes: int = 20, note: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Add to the card that stands beside `dictionary` how well contributions foretell ablation, on the first of a card's episodes.

    All else on it stays as it is.
    """
    cfg = dictionary.cfg
    if dictionary.path is None or dictionary.card is None:
        raise DictionaryError(f"{cfg.name!r} has no card to be amended; make one: interlatent-live dict card {cfg.name}")
    chosen = agent or agent_of(dictionary)
    if chosen is None:
        raise DictionaryError(f"no reference agent has the weights that {cfg.name!r} was trained on, so nothing can be ablated in its life")
    with one_thread():
        rollouts = AgentRollouts(chosen, cfg.input, cfg.output)
        seeds = range(CARD_SEED, CARD_SEED + episodes)
        note(f"{episodes} clean episodes")
        held = samples_of_episodes(rollouts.run(None, seeds, keep=True), dictionary, rollouts, f"{episodes} episodes of {chosen}")
        note("ablating")
        found = agreement_with_ablation(dictionary, rollouts.effect, held)
    command = ["interlatent-live", "dict", "card", dictionary.path.name, "--attribution", "--episodes", str(episodes)]
    card = {**dictionary.card, "attribution": {**found, "command": shlex.join(command)}}
    write_card(dictionary.path, card)
    return card
