"""Why this action: at a budgeted rate, what each active feature of a dictionary contributes to each action's score.

With y the activation at the dictionary's output point, f the features, W the decoder, s_a the score of action a, and the rest of
the policy expanded to first order around y, g_a = ds_a/dy:

    contribution of feature i = f_i W_i . g_a             its direct effect on the score: ablating it moves s_a by minus this
    bias = (b_dec + x W_skip) . g_a      error = (y - y^) . g_a      rest = s_a - y . g_a      they sum to s_a

That is gradient times activation, known as attribution patching (Nanda 2023, https://www.neelnanda.io/mechanistic-interpretability/
attribution-patching; Syed, Rager & Conmy 2023, arXiv:2310.10348), here of features against their absence. Exact where what
follows is linear; how far the order is right elsewhere stands in the dictionary's card.

Scores and gradients come from `Gradients`: from copies of the layers that follow, on the sender's thread, where the agent's thread
appends a tuple; else on the agent's thread.

An attribution that cost c is followed by none for max(1 / rate_hz, c / share), so that the budget holds whatever it costs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns, perf_counter_ns, thread_time_ns, time_ns
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.agent_side.gradients import ExplainedFrame, Gradients
from interlatent_live.agent_side.heads import ancestors
from interlatent_live.agent_side.scores import NotPossible, chosen_of, parts_of
from interlatent_live.agent_side.undisturbed import fresh
from interlatent_live.stream.attribution import KINDS, MAX_FEATURES, Attribution
from interlatent_live.stream.errors import DictionaryError, DictionaryMismatch, TapError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from interlatent_live.agent_side.capture import Capture, Kept
    from interlatent_live.analyzer.dictionary import Dictionary
    from interlatent_live.stream.manifest import Manifest

__all__ = ["Attributor", "Why"]

NEVER: Final = 1 << 62
_QUEUE: Final = 16
_PATIENCE: Final = 100
"""Steps after which it is said that the policy's module was never called."""
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Why:
    """What `Tap(why=…)` takes: whose features explain the actions, and what that may cost."""

    dictionary: Dictionary | str | Path
    """A dictionary, its folder, or the name of one that is installed. Both its tap points must be tapped."""
    rate_hz: float = 5.0
    """Attributions a second at most."""
    share: float = 0.02
    """Part of the time that they may take at most, 0 to 1; measured, see `why_share` in the heartbeat."""
    env: int = 0
    """Which of several environments is explained."""
    kind: str | None = None
    """What the scores are: 'logits', 'means', 'q', 'scores'; None: by the policy's class and the action space."""
    scores: Callable[[Any], Tensor] | None = None
    """From what the policy's module returns to (n, actions) scores, where it returns something else; it must be differentiable."""
    strict: bool = True
    """Whether a dictionary that does not belong to the model is an error; else it is said, and nothing is explained."""
    find: ClassVar[Callable[[str | Path], Dictionary] | None] = None
    """Looks a dictionary up by name; set by `interlatent_live`."""

    def __post_init__(self) -> None:
        if not 0 < self.rate_hz < math.inf:
            raise TapError(f"rate_hz is {self.rate_hz}; it must be above 0 and finite, 5 is the default")
        if not 0 < self.share <= 1:
            raise TapError(f"share is {self.share}; it must be above 0 and at most 1, 0.02 is the default")
        if self.kind is not None and self.kind not in KINDS:
            raise TapError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}, or None")
        if self.env < 0:
            raise TapError(f"env is {self.env}; environments are numbered from 0")

    def load(self) -> Dictionary:
        """The dictionary itself. Raises DictionaryError."""
        from interlatent_live.analyzer.dictionary import Dictionary, load

        if isinstance(self.dictionary, Dictionary):
            return self.dictionary
        return (Why.find or load)(self.dictionary)


class Attributor:
    """Explains one tap's actions. `consider` is the agent's thread's, `drain` and `status` are the sender's."""

    def __init__(self, why: Why, run: str, boot: str, capture: Capture, say: Callable[[str], None]) -> None:
        self.due_ns = NEVER
        """CLOCK_MONOTONIC from which on the next frame is to be explained."""
        self._why, self._run, self._boot, self._capture, self._say = why, run, boot, capture, say
        self._queue: deque[ExplainedFrame] = deque(maxlen=_QUEUE)
        self._period_ns = int(1e9 / why.rate_hz)
        self._interval_ns = self._period_ns
        self._held: dict[str, tuple[Any, Any]] = {}
        self._handles: list[RemovableHandle] = []
        self._waited = 0
        self._began_ns = 0
        self._spent_ns = 0
        self._agent_ns: deque[int] = deque(maxlen=512)
        self._costs_ns: deque[int] = deque(maxlen=512)
        self._frames = self._failures = 0
        self._kind = why.kind or ""
        self._gradients: Gradients | None = None

    def begin(self, model: nn.Module, weights: str, model_hash: str, manifest: Callable[[], Manifest | None]) -> None:
        """Make ready. `manifest`: of what was drained so far, where the actions' names are.

        Raises DictionaryError, or DictionaryMismatch for a dictionary of another model or of points not tapped.
        """
        dictionary = self._why.load()
        cfg = dictionary.cfg
        names = [point.name for point in self._capture.points]
        reason = ""
        if cfg.input not in names or cfg.output not in names:
            reason = f"it reads {cfg.input!r} and {cfg.output!r}, and {', '.join(names) or 'nothing'} is tapped: tap both"
        elif cfg.model_hash and cfg.model_hash != model_hash:
            reason = f"it is of the weights {cfg.model_hash[:12]}, the model has {model_hash[:12]}: train one for these"
        elif self._why.env >= self._capture.num_envs:
            reason = f"environment {self._why.env} is to be explained, and there are {self._capture.num_envs}"
        if reason:
            if self._why.strict:
                raise DictionaryMismatch(f"{dictionary.name!r} cannot say why: {reason}")
            self._say(f"no action is explained by {dictionary.name!r}: {reason}")
            return
        self._input, self._output = names.index(cfg.input), names.index(cfg.output)
        self._manifest = manifest
        device = next((p.device for p in model.parameters()), None)
        self._dictionary = dictionary if device is None or device.type == "cpu" else dictionary.to(device)
        self._model: nn.Module = getattr(model, "_orig_mod", model)
        self._gradients = Gradients(
            self._model, self._capture, self._output, self._why.env, frozen=weights == "frozen", scores=self._why.scores, manifest=manifest
        )
        self._kind = self._why.kind or self._gradients.kind
        _warm(self._dictionary)
        self._began_ns = monotonic_ns()
        self.due_ns = self._began_ns + self._period_ns

    def end(self) -> None:
        """Nothing more is explained. Twice is once."""
        self.due_ns = NEVER
        self._release()

    @property
    def beside(self) -> bool:
        """Whether the sender's thread does all of it."""
        return self._gradients is not None and self._gradients.are_beside

    # on the agent's thread

    def consider(
        self, seq: int, step: int, clock_ns: int, stamp_ns: int, kept: tuple[Kept | None, ...], action: Any, counted: Any
    ) -> None:
        """Explain this frame, if it can be. `counted`: (num_envs,) which environments have one, None: all. Never raises."""
        began = perf_counter_ns()
        try:
            self._consider(seq, step, clock_ns, stamp_ns, kept, action, counted)
        except Exception as error:  # noqa: BLE001 - the agent goes on, whatever the policy does when asked
            self._release()
            self._fail(f"an action could not be explained: {type(error).__name__}: {error}", give_up=isinstance(error, NotPossible))
            self._interval_ns = max(self._period_ns, int((perf_counter_ns() - began) / self._why.share))
            if self.due_ns != NEVER:
                self.due_ns = clock_ns + self._interval_ns
        cost = perf_counter_ns() - began
        self._agent_ns.append(cost)
        self._spent_ns += cost

    def _consider(self, seq: int, step: int, clock_ns: int, stamp_ns: int, kept: Any, action: Any, counted: Any) -> None:
        env = self._why.env
        x, y = kept[self._input], kept[self._output]
        gradients = self._gradients
        assert gradients is not None
        if not gradients.follows and self._manifest() is None:
            return  # the sender has not looked yet
        if x is None or y is None or (counted is not None and not counted[env]):
            return  # no forward pass, or an environment's reset: the next step is as good
        seq += env if counted is None else int(counted[:env].sum())
        frame = ExplainedFrame(seq, step, clock_ns, stamp_ns, chosen_of(action, env), x, y)
        if gradients.are_beside:
            self._queue.append(frame)
            self.due_ns = clock_ns + self._interval_ns
            return
        began = perf_counter_ns()
        if gradients.follows:
            gradients.here(frame)
        elif not self._handles:
            self._wait_for_call()
            self.due_ns = 0  # the next step
            return
        elif not self._held:
            self._waited += 1
            if self._waited == _PATIENCE:
                self._say(
                    f"no action is explained: in {_PATIENCE} steps no module around {self._capture.points[self._output].name} was called "
                    "by itself; tap the module that your agent calls"
                )
            return
        else:
            held, self._held = self._held, {}
            self._release()
            gradients.again(frame, held)
        self._queue.append(frame)
        cost = perf_counter_ns() - began
        self._costs_ns.append(cost)
        self._interval_ns = max(self._period_ns, int(cost / self._why.share))
        self.due_ns = clock_ns + self._interval_ns

    def _wait_for_call(self) -> None:
        """Have the arguments of the next call of each module around the output point kept."""
        path = self._capture.points[self._output].name.partition(":")[0]
        for outer in ancestors(path):
            module = self._model.get_submodule(outer)
            self._handles.append(module.register_forward_pre_hook(_Held(self, outer), with_kwargs=True))

    def hold(self, path: str, args: Any, kwargs: Any) -> None:
        """Called before a module around the output point runs; the last call before the step counts."""
        if not self._capture.resting:
            self._held[path] = fresh(args), fresh(kwargs)

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._held = {}

    def _fail(self, message: str, *, give_up: bool = False) -> None:
        self._failures += 1
        if give_up:
            self.due_ns = NEVER
            message += "; nothing is explained from now on"
        self._say(message)

    # on the sender's thread

    def drain(self) -> Iterator[Attribution]:
        """What was explained since the last call."""
        for _ in range(len(self._queue)):
            frame = self._queue.popleft()
            began = thread_time_ns()
            gradients = self._gradients
            assert gradients is not None
            try:
                if frame.scores is None:
                    gradients.beside(frame)
                found = self._message(frame, gradients)
            except (RuntimeError, ValueError, TypeError, IndexError, DictionaryError) as error:
                give_up = isinstance(error, NotPossible) or self._frames == 0
                self._fail(f"an action could not be explained: {type(error).__name__}: {error}", give_up=give_up)
                found = None
            cost = thread_time_ns() - began
            self._spent_ns += cost
            if gradients.are_beside:
                self._costs_ns.append(cost)
                self._interval_ns = max(self._period_ns, int(cost / self._why.share))
            if found is not None:
                self._frames += 1
                yield found

    def status(self) -> dict[str, float]:
        """Numbers for the heartbeat."""
        costs, agent = np.array(self._costs_ns, np.float64) / 1e3, np.array(self._agent_ns, np.float64) / 1e3
        elapsed = monotonic_ns() - self._began_ns if self._began_ns else 0
        numbers = {
            "why_us_median": float(np.median(costs)) if len(costs) else math.nan,
            "why_us_p99": float(np.percentile(costs, 99)) if len(costs) else math.nan,
            "why_agent_us_median": float(np.median(agent)) if len(agent) else math.nan,
            "why_share": self._spent_ns / elapsed if elapsed else math.nan,
            "why_frames": float(self._frames),
            "why_failures": float(self._failures),
        }
        return {name: value for name, value in numbers.items() if value == value}

    def _message(self, frame: ExplainedFrame, gradients: Gradients) -> Attribution | None:
        import torch

        assert frame.scores is not None
        assert frame.gradients is not None
        dictionary = self._dictionary
        with torch.inference_mode():
            x = gradients.tensor(self._input, frame.x).flatten(1).float()
            y = gradients.tensor(self._output, frame.y).flatten(1).float()
            codes = dictionary.codes(x)
            indices, values = codes.indices.astype(np.int64), codes.values.astype(np.float64)
            columns = dictionary.W_dec[torch.from_numpy(indices).to(y.device)].double().cpu().numpy()
            bias = dictionary.b_dec.double() if dictionary.W_skip is None else (dictionary.b_dec + x[0] @ dictionary.W_skip).double()
        picked, scores = list(frame.picked), frame.scores
        parts = parts_of(frame.gradients, values, columns, bias.cpu().numpy(), y[0].double().cpu().numpy(), scores[picked])
        finite = all(np.isfinite(part).all() for part in parts) and np.isfinite(values).all()
        if not finite:
            self._fail("a frame with NaN or infinity in its activation or scores has no attribution")
            return None
        contributions, bias_part, error, rest = parts
        if len(indices) > MAX_FEATURES:
            strongest = np.sort(np.argsort(-np.abs(contributions).max(axis=1), kind="stable")[:MAX_FEATURES])
            rest = rest + contributions.sum(axis=0) - contributions[strongest].sum(axis=0)
            indices, values, contributions = indices[strongest], values[strongest], contributions[strongest]
        manifest = self._manifest()
        action = None if manifest is None else manifest.action
        discrete = action is not None and action.kind == "discrete" and not action.shape
        kind = self._kind
        if not kind:
            kind = "logits" if discrete else "means" if action is not None and action.kind == "continuous" else "scores"
        names = action.names if action is not None and len(action.names) == len(scores) else ()
        return Attribution(
            run=self._run, boot=self._boot, seq=frame.seq, step=frame.step, env=self._why.env, monotonic_ns=max(0, frame.stamp_ns),
            wall_ns=max(0, frame.clock_ns + time_ns() - monotonic_ns()), dictionary=dictionary.hash, kind=kind,
            chosen=frame.chosen if discrete and frame.chosen < len(scores) else -1, action_count=len(scores),
            names=tuple(names[a][:200] if names else "" for a in picked), actions=np.array(picked, "<i4"),
            total=scores[picked].astype("<f4"), bias=bias_part.astype("<f4"), error=error.astype("<f4"), rest=rest.astype("<f4"),
            features=indices.astype("<i4"), values=values.astype("<f4"), contributions=contributions.astype("<f4"),
        )  # fmt: skip

class _Held:
    """A hook that keeps what a module is called with; copies and pickles as one that does nothing."""

    __slots__ = ("attributor", "path")

    def __init__(self, attributor: Attributor, path: str) -> None:
        self.attributor, self.path = attributor, path

    def __call__(self, module: Any, args: Any, kwargs: Any) -> None:
        self.attributor.hold(self.path, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


def _warm(dictionary: Dictionary) -> None:
    """What torch does once when it first encodes and differentiates, done before the agent acts."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        leaf = torch.zeros(1, dictionary.cfg.d_out, device=dictionary.W_dec.device, requires_grad=True)
        torch.autograd.grad((leaf @ dictionary.W_dec.T).sum(), leaf)
        dictionary.codes(torch.zeros(1, dictionary.cfg.d_in, device=dictionary.W_enc.device))
