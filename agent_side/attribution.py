"""Why this action: at a budgeted rate, what each active feature of a dictionary contributes to each action's score.

With y the activation at the dictionary's output point, f the features, W the decoder, s_a the score of action a, and the rest of
the policy expanded to first order around y, g_a = ds_a/dy:

    contribution of feature i = f_i W_i . g_a             its direct effect on the score: ablating it moves s_a by minus this
    bias = (b_dec + x W_skip) . g_a      error = (y - y^) . g_a      rest = s_a - y . g_a      they sum to s_a

That is gradient times activation, known as attribution patching (Nanda 2023, https://www.neelnanda.io/mechanistic-interpretability/
attribution-patching; Syed, Rager & Conmy 2023, arXiv:2310.10348), here of features against their absence. Exact where what
follows is linear; how far the order is right elsewhere stands in the dictionary's card.

Where the rest of the policy is computed:

1. `heads.tail_of` knows it, the weights are frozen, and it is made of torch's own layers: from a copy, on the sender's thread. The
   agent's thread appends a tuple.
2. The tail is known, but the weights change: on the agent's thread, from the activation that the hooks kept.
3. Else the module that the agent called is run again on a copy of what it was called with, on the agent's thread, without leaving a
   trace (`undisturbed`).

An attribution that cost c is followed by none for max(1 / rate_hz, c / share), so that the budget holds whatever it costs.
"""

from __future__ import annotations

import copy
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

from interlatent_live.agent_side.heads import Tail, ancestors, follows, kind_of, leaves_of, plain, tail_of
from interlatent_live.agent_side.scores import NotPossible, chosen_of, parts_of, picks, row_of, scores_of
from interlatent_live.agent_side.undisturbed import fresh, undisturbed
from interlatent_live.stream.attribution import KINDS, MAX_ACTIONS, MAX_FEATURES, Attribution
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


@dataclass(slots=True)
class _Frame:
    """A frame that is to be explained, and what the agent's thread found out about it."""

    seq: int
    step: int
    clock_ns: int
    stamp_ns: int
    chosen: int
    x: Kept
    y: Kept
    scores: Doubles | None = None
    """(actions,); None: not computed yet."""
    picked: tuple[int, ...] = ()
    gradients: Doubles | None = None
    """(picked, d_out)"""


class Attributor:
    """Explains one tap's actions. `consider` is the agent's thread's, `drain` and `status` are the sender's."""

    def __init__(self, why: Why, run: str, boot: str, capture: Capture, say: Callable[[str], None]) -> None:
        self.due_ns = NEVER
        """CLOCK_MONOTONIC from which on the next frame is to be explained."""
        self._why, self._run, self._boot, self._capture, self._say = why, run, boot, capture, say
        self._queue: deque[_Frame] = deque(maxlen=_QUEUE)
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
        self._width = 0
        """Actions that the policy scores, once known."""
        self._stages: tuple[nn.Module, ...] | None = None
        """Copies, for the sender's thread."""
        self._tail: Tail | None = None
        self._leaves: tuple[nn.Module, ...] = ()
        """The tail's layers, where each one's `forward` does what calling it does: without hooks, counters or draws."""
        self._kind = why.kind or ""

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
        if self._why.scores is None:
            self._tail = tail_of(self._model, cfg.output)
        layers = () if self._tail is None or not plain(self._tail.stages) else leaves_of(self._tail.stages)
        self._kind = self._kind or (self._tail.kind if self._tail else "") or kind_of(self._model)
        self._leaves = layers
        if self._tail is not None and weights == "frozen" and plain(self._tail.stages):
            try:
                self._stages = tuple(copy.deepcopy(layer) for layer in layers)
            except RuntimeError:  # tensors that are results of a computation, as of weight_norm, are not copied
                self._stages = None
            else:
                for module in (module for stage in self._stages for module in stage.modules()):
                    module._forward_hooks.clear()
                    module._forward_pre_hooks.clear()
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
        return self._stages is not None

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
        if self._tail is None and self._manifest() is None:
            return  # the sender has not looked yet
        if x is None or y is None or (counted is not None and not counted[env]):
            return  # no forward pass, or an environment's reset: the next step is as good
        frame = _Frame(seq + (env if counted is None else int(counted[:env].sum())), step, clock_ns, stamp_ns, chosen_of(action, env), x, y)
        if self._stages is not None:
            self._queue.append(frame)
            self.due_ns = clock_ns + self._interval_ns
            return
        began = perf_counter_ns()
        if self._tail is not None:
            self._solve(frame, lambda: self._from_tail(frame))
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
            self._solve(frame, lambda: self._again(frame, held))
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

    def _solve(self, frame: _Frame, run: Callable[[], tuple[Tensor, Tensor, int]]) -> None:
        """Scores and gradients of one frame. `run`: (n, actions) scores, the leaf that they come from, and the frame's row."""
        import torch

        trace = nullcontext() if self._leaves else undisturbed(self._model)
        with trace, torch.inference_mode(False), torch.no_grad():
            scores, leaf, row = run()
            mine = row_of(scores, row)
            frame.scores = mine.detach().double().cpu().numpy()
            frame.picked = picks(frame.scores, frame.chosen)
            if not mine.requires_grad:
                raise NotPossible("the scores do not follow from the activation by differentiable steps")
            found = []
            for action in frame.picked:
                (gradient,) = torch.autograd.grad(mine[action], leaf, retain_graph=True, allow_unused=True)
                if gradient is None:
                    raise NotPossible("the scores do not depend on the activation at this point")
                found.append((gradient[row] if leaf.ndim > 1 else gradient).flatten())
            frame.gradients = torch.stack(found).double().cpu().numpy()

    def _from_tail(self, frame: _Frame) -> tuple[Tensor, Tensor, int]:
        import torch

        assert self._tail is not None
        torch.set_grad_enabled(True)
        leaf = self._tensor(self._output, frame.y).clone().requires_grad_()
        if not self._leaves:
            return _through(self._tail.stages, leaf), leaf, 0
        value = leaf
        for layer in self._leaves:
            value = layer.forward(value)
        return value, leaf, 0

    def _again(self, frame: _Frame, held: dict[str, tuple[Any, Any]]) -> tuple[Tensor, Tensor, int]:
        import torch

        path = next(p for p in ancestors(self._capture.points[self._output].name.partition(":")[0]) if p in held)
        after = follows(self._model, path)
        point = self._capture.points[self._output]
        assert point.module is not None
        leaves: list[Tensor] = []

        def replace(value: Any) -> Any:
            if isinstance(value, tuple) and value and isinstance(value[0], torch.Tensor):
                return (replace(value[0]), *value[1:])
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                raise NotPossible(f"{point.name} gives a {type(value).__name__}; a tensor of numbers can be explained")
            torch.set_grad_enabled(True)
            leaves.append(value.detach().clone().requires_grad_())
            return leaves[-1]

        if point.side == "out":
            point.module.register_forward_hook(lambda _m, _args, output: replace(output))
        else:
            point.module.register_forward_pre_hook(lambda _m, args: (replace(args[0]), *args[1:]))
        args, kwargs = held[path]
        output = self._model.get_submodule(path)(*args, **kwargs)
        if not leaves:
            raise NotPossible(f"{point.name} did not run when the policy ran again")
        chosen = self._capture.chosen
        index = None if chosen is None else chosen.index
        row = self._why.env if index is None else index[self._why.env] if isinstance(index, list) else index.start + self._why.env
        leaf = leaves[-1]
        self._compare(frame, leaf, row)
        if self._why.scores is not None:
            return self._why.scores(output), leaf, row
        scores = scores_of(_through(after.stages, output) if after is not None and after.stages else output)
        if after is None and path and not self._is_known(row_of(scores, row)):
            raise NotPossible(f"what {path!r} returns is not known to be the actions' scores; give Why(scores=…)")
        return scores, leaf, row

    def _is_known(self, scores: Tensor) -> bool:
        """Whether there are as many scores as the manifest names actions, or a continuous action has components."""
        manifest = self._manifest()
        assert manifest is not None
        action = manifest.action
        count = math.prod(action.shape) if action.kind == "continuous" else len(action.names)
        return count == scores.numel()

    def _compare(self, frame: _Frame, leaf: Tensor, row: int) -> None:
        """Raise ValueError where running again gave another activation than the agent's own pass, so that it explains nothing."""
        import torch

        there = self._tensor(self._output, frame.y).flatten().float()
        again = (leaf.detach()[row] if leaf.ndim and leaf.numel() != there.numel() else leaf.detach()).flatten().float()
        if there.shape != again.shape or not torch.allclose(there, again, rtol=1e-3, atol=1e-4):
            raise ValueError("run again on the same input, the policy gives another activation: it draws at random, or has a state")

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
            try:
                if frame.scores is None:
                    self._solve_beside(frame)
                found = self._message(frame)
            except (RuntimeError, ValueError, TypeError, IndexError, DictionaryError) as error:
                give_up = isinstance(error, NotPossible) or self._frames == 0
                self._fail(f"an action could not be explained: {type(error).__name__}: {error}", give_up=give_up)
                found = None
            cost = thread_time_ns() - began
            self._spent_ns += cost
            if self._stages is not None:
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

    def _solve_beside(self, frame: _Frame) -> None:
        """As `_solve`, through the copies: a row for each action, so that one pass back gives all gradients."""
        import torch

        assert self._stages is not None
        y = self._tensor(self._output, frame.y)
        with torch.inference_mode(False):
            if not self._width:
                with torch.no_grad():
                    self._width = row_of(_through(self._stages, y), 0).numel()
            count = self._width
            if count > MAX_ACTIONS:
                with torch.no_grad():
                    scores = row_of(_through(self._stages, y), 0)
                frame.scores = scores.double().cpu().numpy()
                frame.picked = picks(frame.scores, frame.chosen)
            else:
                frame.picked = tuple(range(count))
            with torch.enable_grad():
                leaf = y.expand(len(frame.picked), *y.shape[1:]).clone().requires_grad_()
                each = _through(self._stages, leaf).reshape(len(frame.picked), -1)
                own = each.gather(1, torch.tensor(frame.picked, device=each.device)[:, None]).sum()
                if not own.requires_grad:
                    raise NotPossible("the scores do not follow from the activation by differentiable steps")
                (gradients,) = torch.autograd.grad(own, leaf)
            if frame.scores is None:
                frame.scores = each[0].detach().double().cpu().numpy()
            frame.gradients = gradients.flatten(1).double().cpu().numpy()

    def _message(self, frame: _Frame) -> Attribution | None:
        import torch

        assert frame.scores is not None
        assert frame.gradients is not None
        dictionary = self._dictionary
        with torch.inference_mode():
            x = self._tensor(self._input, frame.x).flatten(1).float()
            y = self._tensor(self._output, frame.y).flatten(1).float()
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

    def _tensor(self, index: int, kept: Kept) -> Tensor:
        """(1, …) of the explained environment, in the dtype of the model."""
        import torch

        layout = self._capture.layouts[index]
        assert layout is not None
        shape, env = layout.spec.shape, self._why.env
        if isinstance(kept, bytes):
            value = torch.from_numpy(np.frombuffer(kept, layout.raw).reshape(-1, *shape)[env : env + 1].copy())
        else:
            value = kept.reshape(-1, *shape)[env : env + 1]
        return value.view(torch.bfloat16) if layout.spec.dtype == "bfloat16" else value


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


def _through(stages: tuple[nn.Module, ...], value: Any) -> Any:
    for stage in stages:
        value = stage(value)
    return value
