"""Learning a dictionary from a running stream: bounded memory, low priority, an artifact whole or not at all.

1. A plain subscriber: what it is too slow for is dropped for it alone, counted, and never noticed by the agent.
2. Frames go to three reservoirs (`analyzer.intake`). Learning begins with 256 frames to fit.
3. Optimiser steps are paced over `seconds`, so that the whole stretch is learned from and a core is left to others: between two
   messages at most 30 ms of steps. Once the agent has said goodbye, the rest are done at once, on what is held.
4. The learning rate falls linearly to 0 over the last 80 % of the steps, or of the time where that is shorter. The last tensors
   are kept: the frames watched change while it learns, so no two of its losses compare.
5. Every ten seconds a checkpoint; the same command goes on from it after a crash. One that cannot be written is said once, and
   costs only that.
6. The episodes held out judge: `analyzer.card`, without quantiles where they last less than 100 seconds, because a thousandth
   of a few seconds is no bound to sound an alarm at. What is no better than the mean output, as when a busy machine left no time
   to learn, does not become an artifact.

Weights that change while it learns make it a dictionary of no weights in particular: the reservoirs then prefer recent frames, and
cfg and card say `stale`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch

from interlatent_live.analyzer.announcement import Announcement
from interlatent_live.analyzer.card import judge
from interlatent_live.analyzer.checkpoint import Checkpoint
from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.intake import MIN_FRAMES, Intake
from interlatent_live.analyzer.training import Trainer, TrainOptions, checkpoint_path, one_thread, pack_state, restore_state, settings
from interlatent_live.stream.errors import DictionaryError, InterlatentError
from interlatent_live.stream.subscriber import Subscriber

__all__ = ["LiveOptions", "LiveProgress", "Phase", "learn", "learn_to"]

MIN_HELD: Final = 50
"""Frames held out that can judge at all."""
QUANTILE_S: Final = 100
"""Seconds held out from which the card has quantiles."""
CHECKPOINT_S: Final = 10.0
REPORT_S: Final = 0.5
_SLICE_S: Final = 0.03
_DRAIN_S: Final = 0.02
_WATCHED: Final = 2048
_FIT_JUDGED: Final = 50_000
"""Frames to fit that baselines and dead share are measured on."""
_LOG = logging.getLogger(__name__)
Phase = Literal["waiting", "gathering", "learning", "held out", "judging", "done"]


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """How to learn from a stream, beside `TrainOptions`."""

    seconds: float = 120.0
    """Of learning, from the first frame on, by this machine's clock."""
    wait: float = 60.0
    """Seconds to wait for the first frame, and after the end for frames of an episode to hold out."""
    memory: int = 256 << 20
    """Bytes of frames held, at most."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0 and math.isfinite(self.wait) and self.wait > 0):
            raise DictionaryError(f"seconds is {self.seconds}, wait is {self.wait}; both must be finite and above 0")
        if self.memory < 1 << 20:
            raise DictionaryError(f"memory is {self.memory} bytes; at least {1 << 20} are needed")


@dataclass(frozen=True, slots=True)
class LiveProgress:
    """Where learning is. What is not known yet is None."""

    phase: Phase
    step: int
    steps: int
    share: float
    """Of the time, or of the steps where they are further: 0 to 1."""
    loss: float | None
    fvu: float | None
    """Of at most 2,048 frames of watched episodes; of those fitted, while none is watched."""
    l0: float | None
    dead: float | None
    """Share of latents silent for `dead_steps` steps."""
    frames: int
    """Received."""
    lost: int
    """Dropped before they came here."""
    refused: Mapping[str, int]
    """Frames that came and were of no use, by reason."""
    episodes: int
    held_out: int
    """Episodes, and those of them that are held out."""
    checkpoint_failed: str = ""
    """Why the last checkpoint could not be written."""


class _Run:
    """One model in training on the reservoirs of an intake."""

    def __init__(self, intake: Intake, options: TrainOptions) -> None:
        self.intake, self.options = intake, options
        self.trainer = Trainer(intake.samples("fit"), options)
        self.optimiser = torch.optim.Adam(self.trainer.model.parameters, lr=options.rate)
        self._generator = torch.Generator().manual_seed(options.seed + 1)
        self.step = self.begun_at = 0
        self.loss = math.nan
        self.checkpoint_failed = ""
        self._checkpoint: Checkpoint | None = None

    def resume(self, checkpoint: Checkpoint) -> None:
        """Keep checkpoints there, and go on from the one that is there. Raises DictionaryError where it is of another run."""
        self._checkpoint = checkpoint
        found = checkpoint.read()
        if found is None:
            return
        trainer, tensors = self.trainer, found.tensors
        trainer.x_mean, trainer.y_mean = tensors.pop("x_mean"), tensors.pop("y_mean")
        trainer.x_scale, trainer.y_scale = tensors.pop("scales").tolist()
        restore_state(trainer.model, self.optimiser, self._generator, tensors)
        self.step = self.begun_at = found.step

    def advance(self, to: int, until: float, share: Callable[[int], float]) -> None:
        """Optimiser steps up to number `to`, until a monotonic time. `share`: how far the run is at a step, for the rate."""
        model, options = self.trainer.model, self.options
        fit = self.intake.parts["fit"]
        while self.step < to and time.monotonic() < until:
            for group in self.optimiser.param_groups:
                group["lr"] = options.rate * min(1.0, max(0.0, 1 - share(self.step)) / 0.8)
            x, y = self._normalised(*fit.draw(options.batch))
            loss = model.loss(x, y)
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            model.drop_radial_gradient()
            self.optimiser.step()
            model.hold_unit_norm()
            self.step += 1
            self.loss = float(loss.detach())
            if not math.isfinite(self.loss):
                raise DictionaryError(f"training diverged at learning rate {options.rate:g}, l1 {options.l1:g}; lower them")

    def measured(self) -> tuple[float, float, float]:
        """FVU, L0 and dead share now."""
        watch = self.intake.parts["watch"]
        chosen = watch if watch.frames >= MIN_HELD else self.intake.parts["fit"]
        x, y = self._normalised(*chosen.draw(_WATCHED))
        model = self.trainer.model
        with torch.no_grad():
            f = model.encode(model.pre(x))
            error = (y - model.decode(f, x)).square().sum(dtype=torch.float64)
            total = (y - y.mean(dim=0)).square().sum(dtype=torch.float64)
            fvu = float(error / total) if total > 0 else math.nan
            return fvu, float((f > 0).sum() / len(x)), float((model.silent > self.options.dead_steps).double().mean())

    def keep(self) -> None:
        """Write the checkpoint; where that fails, say so once and go on."""
        if self._checkpoint is None:
            return
        trainer = self.trainer
        if self.step == self.begun_at:
            return
        tensors = {name: tensor.detach().clone() for name, tensor in trainer.model.tensors.items()}
        state = pack_state(trainer.model, self.optimiser, self._generator, tensors)
        scales = torch.tensor([trainer.x_scale, trainer.y_scale], dtype=torch.float64)
        try:
            self._checkpoint.write(self.step, 0.0, 0, state | {"x_mean": trainer.x_mean, "y_mean": trainer.y_mean, "scales": scales})
            self.checkpoint_failed = ""
        except DictionaryError as error:
            if not self.checkpoint_failed:
                _LOG.error("%s; learning goes on without it", error)
            self.checkpoint_failed = str(error)

    def _normalised(self, x: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
        t = self.trainer
        inputs, outputs = torch.from_numpy(x), torch.from_numpy(y)
        return ((inputs - t.x_mean) / t.x_scale).to(t.device), ((outputs - t.y_mean) / t.y_scale).to(t.device)


def learn(
    endpoint: str,
    options: TrainOptions | None = None,
    live: LiveOptions | None = None,
    *,
    name: str,
    input_point: str | None = None,
    output_point: str | None = None,
    run: str | None = None,
    command: Callable[[str, str], str] = lambda input_point, output_point: "",
    checkpoint: Path | None = None,
    report: Callable[[LiveProgress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Dictionary:
    """Learn from the stream at `endpoint` until `live.seconds` are over, the agent ends or `stop()`; with its card.

    `command` makes the command line of the points learned. `checkpoint`: where an interrupted run is kept; the caller removes it
    once the dictionary is saved. Raises DictionaryError where nothing was learned that could be judged, EndpointError for an
    address that is none.
    """
    options, live = options or TrainOptions(), live or LiveOptions()
    intake = Intake(input_point, output_point, run=run, memory=live.memory, seed=options.seed)
    with one_thread(), Subscriber(endpoint, run=run) as subscriber:
        session = _Session(intake, options, live, checkpoint, report)
        while not session.over(stop):
            _drain(subscriber, intake, 0.0 if session.busy else 0.05)
            session.advance()
        report(session.progress("judging"))
        dictionary = session.finish(endpoint, subscriber.refused, name, command)
        report(session.progress("done"))
        return dictionary


def learn_to(
    endpoint: str,
    to: str | Path,
    options: TrainOptions | None = None,
    live: LiveOptions | None = None,
    *,
    report: Callable[[LiveProgress], None] = lambda progress: None,
    **given: Any,
) -> Dictionary:
    """`learn`, and write the artifact to `to`, which must not exist; meanwhile a file beside it says how far it is
    (`analyzer.announcement`). Ctrl-C, where it is not caught by `stop`, leaves the checkpoint alone.
    """
    target = Path(to)
    if target.exists():
        raise DictionaryError(f"{target} exists; choose another folder for the dictionary")
    news, checkpoint = Announcement(target), checkpoint_path(target)

    def tell(progress: LiveProgress) -> None:
        news.write({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(progress).items()})
        report(progress)

    try:
        dictionary = learn(endpoint, options, live, name=target.name, checkpoint=checkpoint, report=tell, **given)
        dictionary.save(target)
    except InterlatentError as error:
        news.write({"phase": "failed", "error": str(error)})
        raise
    except BaseException:
        news.remove()
        raise
    news.remove()
    checkpoint.unlink(missing_ok=True)
    return dictionary


class _Session:
    """The clockwork of `learn`."""

    def __init__(
        self,
        intake: Intake,
        options: TrainOptions,
        live: LiveOptions,
        checkpoint: Path | None,
        report: Callable[[LiveProgress], None],
    ) -> None:
        self.intake, self.options, self.live = intake, options, live
        self._path, self._report = checkpoint, report
        self._run: _Run | None = None
        self._since = time.monotonic()
        self._first: float | None = None
        self._ended: float | None = None
        self._reported = self._kept = self._since
        self._why_not, self._try_from = "", MIN_FRAMES
        self.busy = False
        """Whether steps are due: then messages are not waited for."""

    def over(self, stop: Callable[[], bool]) -> bool:
        """Whether to judge now. Raises DictionaryError where no frame came in time."""
        now = time.monotonic()
        if stop():
            return True
        if self._first is None:
            if now - self._since > self.live.wait:
                raise DictionaryError(
                    f"no frame came in {self.live.wait:g} s; is an agent publishing there? Give its address with --connect, "
                    "or wait longer with --wait"
                )
            return False
        learned = self._run is not None and self._run.step >= self.options.steps
        late = self._share_of_time() >= 1
        if self.intake.ended:
            return learned or self._run is None
        if not (learned or late):
            return False
        if self._ended is None:
            self._ended = now
        return self._judgeable() or now - self._ended > self.live.wait

    def advance(self) -> None:
        """Learn what is due, keep what was learned, and say how far it is."""
        now = time.monotonic()
        if self._first is None and self.intake.received:
            self._first = now
        fit = self.intake.parts.get("fit")
        if self._run is None and fit is not None and fit.offered >= self._try_from:
            self._begin()
        run = self._run
        if run is not None:
            share = 1.0 if self.intake.ended else min(1.0, self._share_of_time())
            due = run.begun_at + math.ceil((self.options.steps - run.begun_at) * share)
            if self._ended is None:
                run.advance(due, now + _SLICE_S, self._share)
            self.busy = self._ended is None and run.step < due
            if now - self._kept > CHECKPOINT_S:
                self._kept = now
                run.keep()
        if now - self._reported > REPORT_S:
            self._reported = now
            self._report(self.progress())

    def progress(self, phase: Phase | None = None) -> LiveProgress:
        """Where it is."""
        intake, run = self.intake, self._run
        if phase is None:
            phase = "waiting" if self._first is None else "gathering" if run is None else "held out" if self._ended else "learning"
        fvu, l0, dead = (None, None, None) if run is None else run.measured()
        return LiveProgress(
            phase, run.step if run else 0, self.options.steps, self._share(run.step if run else 0),
            None if run is None or math.isnan(run.loss) else run.loss, fvu, l0, dead, intake.received, intake.lost,
            {reason: count for reason, count in sorted(intake.refused.items()) if count}, sum(intake.episodes.values()),
            intake.episodes["held_out"], run.checkpoint_failed if run else "",
        )  # fmt: skip

    def finish(self, endpoint: str, refused: Mapping[str, int], name: str, command: Callable[[str, str], str]) -> Dictionary:
        """The dictionary with its card. Raises DictionaryError where there is nothing to judge, or to judge on."""
        intake, run = self.intake, self._run
        if run is not None:
            run.keep()
        self._check()
        assert run is not None
        fit, held = intake.samples("fit", _FIT_JUDGED), intake.samples("held_out")
        stale = None
        if intake.changing:
            low, high = intake.versions or (0, 0)
            stale = f"the weights changed while it learned (policy versions {low} to {high})"
        provenance = settings(self.options) | {
            "recording": held.source, "frames": intake.received, "episodes": sum(intake.episodes.values()),
            "command": command(intake.input, intake.output), "stopped_at": run.step if run.step < self.options.steps else None,
            "live": {
                "endpoint": endpoint, "seconds": self.live.seconds, "memory": self.live.memory, "lost": intake.lost,
                "refused": {k: v for k, v in sorted(intake.refused.items()) if v}, "messages_refused": dict(refused),
                "reservoir": "recent (Aggarwal 2006)" if intake.parts["fit"].recent else "even (Vitter 1985, algorithm R)",
                "held": {part: reservoir.frames for part, reservoir in intake.parts.items()}, "stale": stale,
            },
        }  # fmt: skip
        dictionary = run.trainer.dictionary(fit, name=name, provenance=provenance)
        card = judge(dictionary, held, fit) | {"stale": stale, "light": True}
        if card["fvu"] is not None and card["fvu"] >= 1:
            raise DictionaryError(
                f"held-out FVU is {card['fvu']:.3g} after {run.step} of {self.options.steps} steps: the mean output alone is as good. "
                "Let it run longer, with --seconds; what was learned is kept, and the same command goes on from there"
            )
        if held.frames < QUANTILE_S * held.frames_a_second:
            card["quantiles"] = {measure: dict.fromkeys(found) for measure, found in card["quantiles"].items()}
        return dictionary.with_card(card)

    def _begin(self) -> None:
        offered = self.intake.parts["fit"].offered
        try:
            run = _Run(self.intake, self.options)
        except DictionaryError as error:  # a layer that stood still so far may yet move
            self._why_not, self._try_from = str(error), 2 * offered
            return
        if self._path is not None:
            run.resume(Checkpoint(self._path, _fingerprint(self.intake, self.options)))
        self._run = run

    def _check(self) -> None:
        """Raise what stands in the way of a dictionary that can be judged."""
        intake = self.intake
        arrived = f"{intake.received} frames of {sum(intake.episodes.values())} episode(s) came"
        refused = ", ".join(f"{count} {reason}" for reason, count in sorted(intake.refused.items()) if count)
        arrived += f", {refused} of them of no use" if refused else ""
        if self._run is None or self._run.step == 0:
            fit = intake.parts["fit"].frames if intake.parts else 0
            if self._why_not:
                raise DictionaryError(f"{self._why_not} ({arrived})")
            raise DictionaryError(f"{arrived}, {fit} to fit; {MIN_FRAMES} are needed: let it run longer, with --seconds")
        if not self._judgeable():
            raise DictionaryError(
                f"{arrived}, and {intake.taken['held_out']} frames to judge on; {MIN_HELD} are needed, of a second episode or a later one: "
                "let it run longer, with --seconds. What was learned is kept, and the same command goes on from there"
            )

    def _judgeable(self) -> bool:
        return self.intake.taken["held_out"] >= MIN_HELD

    def _share_of_time(self) -> float:
        return 0.0 if self._first is None else (time.monotonic() - self._first) / self.live.seconds

    def _share(self, step: int) -> float:
        return max(step / self.options.steps, min(1.0, 0.0 if self.intake.ended else self._share_of_time()))


def _drain(subscriber: Subscriber, intake: Intake, patience_s: float) -> None:
    """Take in what is there; wait for the first message only."""
    until = time.monotonic() + _DRAIN_S
    message = subscriber.receive(patience_s)
    while message is not None:
        intake.take(message)
        if time.monotonic() > until:
            return
        message = subscriber.receive(0.0)


def _fingerprint(intake: Intake, options: TrainOptions) -> str:
    """Of what a checkpoint belongs to: options, points and weights; the frames are others every time."""
    assert intake.manifest is not None
    parts = [asdict(options), intake.input, intake.output, intake.manifest.weights_hash, list(np.shape(intake.parts["fit"].draw(1)[0]))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
