"""What an experiment needs of an agent: episodes of given seeds, with something changed in its policy or not.

Services never import the agent's side, so trials are handed in; `interlatent_live.trials` makes them of a reference agent.
Seeds of the search, of the confirmation and of the ablations are kept apart from one another and from those of training,
choice and cards (`analyzer.rollout`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.rollout import Acting, Splice
from interlatent_live.stream.errors import DictionaryError

__all__ = ["ABLATION_SEED", "CONFIRM_SEED", "LOOK_SEED", "SEARCH_SEED", "Judged", "Memory", "Trial", "Trials"]

LOOK_SEED: Final = 40_000_000
"""First seed of the episodes that a feature's activity is measured on."""
SEARCH_SEED: Final = 50_000_000
CONFIRM_SEED: Final = 60_000_000
ABLATION_SEED: Final = 70_000_000
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Episodes of one arm, in the order of their seeds."""

    seeds: npt.NDArray[np.int64]
    value: Doubles
    """(n,) the outcome asked for."""
    total: Doubles
    """(n,) sums of rewards."""
    steps: npt.NDArray[np.int64]
    fell: npt.NDArray[np.bool_]
    """(n,) ended by itself, not by a time limit."""
    x: npt.NDArray[np.float32]
    """(frames, d_in) inputs met, episode by episode; (0, 0) where they were not asked for."""
    y: npt.NDArray[np.float32]
    """(frames, d_out) outputs as the policy computed them, before they were changed."""
    episode: npt.NDArray[np.int64]
    """(frames,) place of the episode within `seeds`."""


class Judged(Protocol):
    """What episodes are judged by."""

    @property
    def name(self) -> str:
        """Such as 'return'."""
        ...

    @property
    def unit(self) -> str:
        """Of its values."""
        ...

    @property
    def description(self) -> str:
        """For people."""
        ...

    @property
    def whole(self) -> float | None:
        """What 100 % is; None: the mean without intervention."""
        ...


class Trials(Acting, Protocol):
    """One that runs many episodes at once, each judged by an outcome."""

    @property
    def outcome(self) -> Judged:
        """What `Trial.value` is."""
        ...

    def trial(self, splice: Splice | None, seeds: Sequence[int], *, max_steps: int | None = None, keep: bool = False) -> Trial:
        """One episode for each seed, of at most `max_steps`; `keep`: with the activations met."""
        ...


class Memory:
    """Trials that were done already, in a file of JSON lines: an experiment that was interrupted goes on where it was.

    An arm is known by its label, its seeds and its length; a file of another experiment is refused, a torn last line is
    done again. Activations are not kept: a trial with them is always run.
    """

    @classmethod
    def of(
        cls, kind: str, trials: Trials, dictionary: Dictionary, outcome: str, options: Mapping[str, Any], path: Path | None,
        tick: Callable[[int], None],
    ) -> Memory:  # fmt: skip
        """Of an experiment of this `kind` on this agent, dictionary and outcome with these `options`."""
        identity = {
            "kind": kind, "agent": trials.agent, "weights": trials.model_hash, "dictionary": dictionary.hash,
            "outcome": outcome, "options": options,
        }  # fmt: skip
        return cls(trials, path, identity, tick)

    def __init__(self, trials: Trials, path: Path | None, identity: dict[str, Any], tick: Callable[[int], None] = lambda _: None) -> None:
        """`identity`: everything that outcomes depend on; `tick` is told the episodes of each trial, remembered ones too."""
        self._trials, self._path, self._tick = trials, path, tick
        text = json.dumps(identity, sort_keys=True)
        self._mark = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._known: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = list(_lines(path)) if path.exists() else []
        if not lines:
            path.write_text(json.dumps({"experiment": self._mark, "of": identity}) + "\n", encoding="utf-8")
            return
        if lines[0].get("experiment") != self._mark:
            raise DictionaryError(
                f"{path} is of another experiment (other agent, dictionary or options); name another folder, or remove it"
            )
        self._known = {row["arm"]: row for row in lines[1:]}
        whole = "".join(json.dumps(row) + "\n" for row in lines)
        path.write_text(whole, encoding="utf-8")  # without a torn end, behind which nothing could be read

    def trial(self, label: str, splice: Splice | None, seeds: range, max_steps: int | None = None) -> Trial:
        """The arm `label` on `seeds`."""
        key = f"{label}|{seeds.start}:{seeds.stop}|{max_steps}"
        row = self._known.get(key)
        if row is None:
            done = self._trials.trial(splice, seeds, max_steps=max_steps)
            row = {
                "arm": key, "value": done.value.tolist(), "total": done.total.tolist(),
                "steps": done.steps.tolist(), "fell": done.fell.tolist(),
            }  # fmt: skip
            self._known[key] = row
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        self._tick(len(seeds))
        nothing = np.empty((0, 0), np.float32)
        return Trial(
            np.array(seeds), np.array(row["value"], np.float64), np.array(row["total"], np.float64), np.array(row["steps"], np.int64),
            np.array(row["fell"], np.bool_), nothing, nothing, np.empty(0, np.int64),
        )  # fmt: skip


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            return
        if isinstance(row, dict):
            yield row
