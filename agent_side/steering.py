"""Steering: which interventions are in force, who may start them, and how they end.

Three threads meet here. The agent's reads `wanted` in every hook (None: nothing to do, one attribute load) and takes over
what was asked for between two modules or two steps; it holds no lock and waits for nobody. Requests (the control thread,
or `tap.steer`) build a new immutable `Force` under a lock and put it into `wanted`. The sender's thread, which turns
every 10 ms, ends what is over and hands out what there is to tell.

An intervention ends at its time (checked by the hook itself, by the agent's monotonic clock), when its author's lease runs
out, when it is released, when the tap closes, or when applying it fails. What was computed before the edit stays in the
frame: at the edited tap point a recording holds the model's own activation, and the row column `intervention` says what
was in force; whatever the model computes after it, the action included, is steered.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from interlatent_live.agent_side.effects import Gauge
from interlatent_live.agent_side.hooks import Unkept
from interlatent_live.agent_side.intervention import Act, Cause, Force, History, is_feature
from interlatent_live.agent_side.policy import SteeringPolicy
from interlatent_live.agent_side.rows import Applied
from interlatent_live.agent_side.sealed import of_env, sealed_value
from interlatent_live.agent_side.steerable import Finder, Steerable, typical_maximum
from interlatent_live.analyzer.dictionary import Dictionary
from interlatent_live.analyzer.edit import Edit
from interlatent_live.stream.condition import Condition
from interlatent_live.stream.errors import PredicateError, SteeringError
from interlatent_live.stream.intervention import Effects, Intervention

if TYPE_CHECKING:
    from torch import nn

    from interlatent_live.agent_side.capture import Capture
    from interlatent_live.stream.frames import FrameBatch

__all__ = ["Steering"]

_MAX_TEXT: Final = 200
_MAX_EVENTS: Final = 4096
_MAX_CAUSES: Final = 256
_MAX_DIRECTION: Final = 65_536
NAMES = ("reward", "terminated", "truncated", "episode", "episode_step")


class Steering:
    """The interventions of one tap."""

    def __init__(self, policy: SteeringPolicy, capture: Capture, run: str, boot: str, complain: Callable[[str], None]) -> None:
        self.policy, self._capture, self._run, self._boot, self._complain = policy, capture, run, boot, complain
        self.wanted: Force | None = None
        """What is to be in force; hooks read it."""
        self.force: Force | None = None
        """What the agent's thread has taken over."""
        self._lock = threading.Lock()
        self._number = 0
        self.causes: dict[str, str] = {}
        """Why the last ones ended, by id."""
        self._ids: set[str] = set()
        self._model: nn.Module | None = None
        self._dictionaries: Steerable
        self._position: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._sources: Callable[[], Mapping[str, Any]] = dict
        self._held: dict[int, Any] = {}
        self._applied: dict[int, tuple[bool, ...] | None] = {}
        self._histories: dict[int, History] = {}
        self._mode = 0
        """Of the forward pass that runs: 0 the agent's own, 1 without interventions, 2 with those that only measure."""
        self._changed = False
        self._events: deque[Intervention] = deque(maxlen=_MAX_EVENTS)
        self._told = 0
        self._gauge: Gauge | None = None
        self._limits: tuple[torch.Tensor, torch.Tensor] | None = None
        self._handle: Any = None
        self.counts: Counter[str] = Counter()
        """What was started, ended, clipped; refusals are counted by the control."""

    # opening and closing

    def open(
        self,
        model: nn.Module | None,
        weights: str,
        weights_hash: str,
        find: Finder | None,
        position: Callable[[], tuple[int, int]],
        sources: Callable[[], Mapping[str, Any]],
        distribution: Callable[[Any], Any] | None,
    ) -> None:
        """Learn what is steered. `position`: frames and steps so far; `sources`: where the metrics' numbers come from.

        Raises SteeringError for points that are not tapped, DictionaryError for dictionaries that cannot be read.
        """
        names = [point.name for point in self._capture.points]
        for name in self.policy.points or ():
            if name not in names:
                raise SteeringError(f"steering allows {name!r}, but the tap reads {', '.join(names) or 'nothing'}: tap it as well")
        self._model = model
        self._position, self._sources = position, sources
        self._dictionaries = Steerable(self.policy, names, weights, weights_hash, find)
        if model is not None:
            if self.policy.effect_hz:
                self._gauge = self._make_gauge(model, distribution)
            if self.policy.action_limits is not None:
                low, high = zip(*self.policy.action_limits, strict=True)
                self._limits = torch.tensor(low), torch.tensor(high)
                self._handle = model.register_forward_hook(Unkept(self._limit))

    def close(self) -> None:
        """End everything; on the agent's thread, which steps no more."""
        self.end(None, "closed")
        self.adopt()
        self.let_go()

    def let_go(self) -> None:
        """Take the hooks off that are not the capture's, and change nothing any more."""
        self.wanted = self.force = None
        if self._gauge is not None:
            self._gauge.detach()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def steerable(self, index: int) -> bool:
        """Whether the hooks of a tap point have to look for interventions."""
        return self._capture.points[index].part.plain

    # asking, on any thread

    def start(
        self,
        *,
        operation: str,
        strength: float = 0.0,
        feature: int | None = None,
        direction: Sequence[float] | None = None,
        point: str | None = None,
        dictionary: str | Dictionary | None = None,
        unit: str = "activation",
        typical: float | None = None,
        ttl_s: float | None = None,
        condition: Condition | None = None,
        env: int | None = None,
        shadow: bool = False,
        max_effect: float | None = None,
        author: str = "",
        reason: str = "",
        id: str = "",
        leased: bool = False,
    ) -> Act:
        """Begin an intervention, from the agent's next forward pass on. Raises SteeringError or DictionaryError.

        `unit`: 'activation', or 'typical' for multiples of the feature's typical maximum (the card's `typical_max`, else
        `typical`). `leased`: it ends when its author is not heard of. `point`: where a direction is added.
        """
        if operation not in self.policy.operations:
            raise SteeringError(f"operation {operation!r} is not allowed; {', '.join(self.policy.operations)} are", reason="not_allowed")
        ttl_s = self.policy.max_ttl_s if ttl_s is None else _finite(ttl_s, "ttl_s")
        if not 0 < ttl_s <= self.policy.max_ttl_s:
            raise SteeringError(f"ttl_s is {ttl_s:g}; above 0 and at most {self.policy.max_ttl_s:g} s are allowed", reason="not_allowed")
        strength = _finite(strength, "strength")
        if env is not None and not 0 <= env < self._most_envs():
            raise SteeringError(f"env is {env}; the tap has 0 to {self._most_envs() - 1}", reason="bad_request")
        found = None if direction is not None else self._dictionaries.named(dictionary)
        if found is not None:
            source, site, width = found.cfg.input, found.cfg.output, found.cfg.d_out
        else:
            source = site = point or ""
            width = len(direction or ())
            if not self.policy.directions:
                raise SteeringError("raw directions are not allowed; features are", reason="not_allowed")
            if not 0 < width <= _MAX_DIRECTION:
                raise SteeringError(f"the direction has {width} numbers; 1 to {_MAX_DIRECTION} are needed", reason="bad_request")
        input, output = self._index(source, found), self._index(site, found)
        allowed = self.policy.points
        if allowed is not None and site not in allowed:
            raise SteeringError(f"{site!r} may not be changed; {', '.join(allowed) or 'no point'} may", reason="not_allowed")
        layout = self._capture.layouts[output]
        if layout is not None and math.prod(layout.spec.shape) != width and layout.spec.shape[-1] != width:
            raise SteeringError(f"{site!r} is {layout.spec.shape} wide, the edit {width}: it is another model's", reason="mismatch")
        if unit == "typical" and operation in ("clamp", "add") and feature is not None:
            strength *= typical_maximum(found, feature, typical)
        elif unit not in ("activation", "typical"):
            raise SteeringError(f"unit is {str(unit)[:40]!r}; 'activation' or 'typical' is needed", reason="bad_request")
        limits = [limit for limit in (self.policy.max_effect, max_effect) if limit is not None]
        if max_effect is not None and not _finite(max_effect, "max_effect") > 0:
            raise SteeringError(f"max_effect is {max_effect:g}; it must be above 0", reason="bad_request")
        if limits and self._gauge is None:
            raise SteeringError("an effect is limited, but the policy does not measure it: set effect_hz", reason="not_allowed")
        self.tend()
        edit = Edit(
            operation,  # type: ignore[arg-type]
            strength,
            feature,
            None if direction is None else tuple(_finite(number, "direction") for number in direction),
        )
        if condition is not None:
            self._check(condition, found)
        with self._lock:
            acts = () if self.wanted is None else self.wanted.acts
            if len(acts) >= self.policy.max_active:
                raise SteeringError(f"{len(acts)} interventions are in force, the most that are allowed: release one", reason="too_many")
            if id in self._ids:
                raise SteeringError(f"intervention {id!r} was there before", reason="replayed")
            same = [act for act in acts if feature is not None and act.edit.feature == feature and act.dictionary is found]
            if any(act.env is None or env is None or act.env == env for act in same):
                raise SteeringError(f"feature {feature} is steered already: release that first", reason="too_many")
            act = Act(
                self._number,
                id or f"{self._number:04x}",
                edit,
                found,
                input=input,
                output=output,
                output_name=site,
                width=width,
                author=author[:_MAX_TEXT],
                reason=reason[:_MAX_TEXT],
                ttl_s=ttl_s,
                lease_ns=monotonic_ns() + int(self.policy.lease_s * 1e9) if leased else None,
                condition=condition,
                shadow=shadow,
                env=env,
                max_effect=min(limits) if limits else None,
                max_change=self.policy.max_change,
                unit=unit,
            )
            if condition is not None:
                act.on = [False] * self._capture.num_envs
                self._histories[act.number] = History(condition, self._capture.num_envs)
            self._number += 1
            self._ids.add(act.id)
            self.counts["started"] += 1
            self.wanted = Force((*acts, act))
        return act

    def renew(self, ids: Sequence[str], author: str | None = None) -> list[str]:
        """The author is still there; which of his interventions still are."""
        now, until = monotonic_ns(), monotonic_ns() + int(self.policy.lease_s * 1e9)
        found = [] if self.wanted is None else [act for act in self.wanted.acts if act.id in ids and act.live(now)]
        found = [act for act in found if author is None or act.author == author]
        for act in found:
            act.lease_ns = until
        return [act.id for act in found]

    def end(self, id: str | None, cause: Cause) -> list[str]:
        """End one intervention, or all; the ids of those that ended. The next forward pass goes without."""
        with self._lock:
            acts = () if self.wanted is None else self.wanted.acts
            ending = [act for act in acts if id is None or act.id == id]
            for act in ending:
                act.dead = act.over(monotonic_ns()) or cause
            self._keep([act for act in acts if act not in ending], acts)
        return [act.id for act in ending]

    def tend(self) -> None:
        """End what is over; called every few milliseconds, by any thread."""
        wanted = self.wanted
        if wanted is None:
            return
        now = monotonic_ns()
        if all(act.live(now) for act in wanted.acts):
            return
        with self._lock:
            acts = () if self.wanted is None else self.wanted.acts
            for act in acts:
                act.dead = act.over(now)
            self._keep([act for act in acts if not act.dead], acts)

    def listing(self) -> list[dict[str, Any]]:
        """What is in force, as plain data."""
        now = monotonic_ns()
        acts = () if self.wanted is None else self.wanted.acts
        return [
            _told(act) | {"id": act.id, "number": act.number, "left_s": max(0.0, (act.deadline_ns - now) / 1e9), "holds": act.holds(),
                          "factor": act.factor, "effect": act.effect, "clipped": act.clipped, "kind": act.kind, "measured": act.measured,
                          "outcome": None if act.outcome is None else act.outcome.data}
            for act in acts
        ]  # fmt: skip

    def status(self) -> dict[str, float]:
        """Numbers for the heartbeat."""
        acts = () if self.wanted is None else self.wanted.acts
        return {"steering_active": float(len(acts)), **{f"steering_{name}": float(count) for name, count in self.counts.items()}}

    def drain(self) -> Iterator[Intervention | Effects]:
        """What there is to tell since the last call; on the sender's thread."""
        self.tend()
        for _ in range(len(self._events)):
            yield self._events.popleft()
        if self._gauge is not None:
            effects = self._gauge.drain(self._run, self._boot)
            if effects is not None:
                yield effects

    def learn(self, batch: FrameBatch) -> None:
        """Note what actions are like; on the sender's thread."""
        if self._gauge is not None:
            action = batch.columns.get("action")
            self._gauge.discrete = action is not None and action.dtype.kind in "iu" and math.prod(action.shape[1:]) == 1
            self._gauge.spread.add(batch)

    # on the agent's thread

    def touch(self, index: int, value: Any) -> Any:
        """What a hook of tap point `index` returns: the changed value, or None. Never raises."""
        if self._capture.resting:
            return None
        wanted = self._current()
        if wanted is None:
            return None
        acts = wanted.sites.get(index)
        if acts is None and index not in wanted.inputs:
            return None
        act: Act | None = None
        try:
            array = _single(value) if self._capture.num_envs == 1 and self._capture.chosen is None else None
            if array is not None and (acts is None or array.shape[1] == acts[0].width):
                if index in wanted.inputs:
                    self._held[index] = array.copy()
                return None if acts is None or self._mode == 1 else self._touch_row(acts, array)
            tensor = value if isinstance(value, torch.Tensor) else value[0]
            rows = self._rows(tensor)
            if rows is None:
                return None
            if index in wanted.inputs:
                self._held[index] = rows.detach().to(torch.float32, copy=True).reshape(len(rows), -1)
            if acts is None or self._mode == 1:
                return None
            now, envs = monotonic_ns(), self._envs()
            result = flat = rows.reshape(-1, acts[0].width)
            for act in acts:
                if not act.live(now) or (act.shadow and self._mode != 2):
                    continue
                x = self._held.get(act.input)
                if x is None and act.needs_input:
                    continue
                if isinstance(x, np.ndarray):
                    x = torch.from_numpy(x)
                if x is not None and act.dictionary is not None and x.shape[1] != act.dictionary.cfg.d_in:
                    x = x.reshape(-1, act.dictionary.cfg.d_in)
                change = act.change(x, flat, envs)
                if not act.shadow and act.holds():
                    self._applied[act.number] = self._where(act)
                if change is not None:
                    result = _added(result, change)
            if result is flat:
                return None
            self._changed = True
            return self._put(value, tensor, result)
        except Exception as error:  # noqa: BLE001 - nothing may be raised into the user's forward pass
            for failed in [act] if act is not None else wanted.acts:
                failed.dead = "error"
            self.counts["failed"] += 1
            self._complain(f"an intervention failed and was ended: {type(error).__name__}: {error}")
            return None

    def _touch_row(self, acts: Sequence[Act], array: Any) -> torch.Tensor | None:
        """The same for the one row of a single environment, in numpy: half the time."""
        now, result = monotonic_ns(), array
        for act in acts:
            if not act.live(now) or (act.shadow and self._mode != 2) or act.env not in (None, 0):
                continue
            x = self._held.get(act.input)
            if x is None and act.needs_input:
                continue
            if x is not None and act.dictionary is not None:
                x = x.reshape(-1)
                if not isinstance(x, np.ndarray):
                    x = x.numpy()
                if len(x) != act.dictionary.cfg.d_in:
                    continue
            elif x is not None:
                x = None
            try:
                change = act.row(x, array[0])
            except Exception:
                act.dead = "error"
                raise
            if not act.shadow and (act.on is None or act.on[0]):
                self._applied[act.number] = None
            if change is not None:
                result = result + change
        if result is array:
            return None
        self._changed = True
        return torch.from_numpy(result)

    def adopt(self, after: int | None = None) -> None:
        """Take over what is wanted, and write down from which frame on. `after`: this step's pass has run, and that is the
        sequence number after it."""
        wanted, force = self.wanted, self.force
        if wanted is force:
            return
        self.force = wanted
        old, new = () if force is None else force.acts, () if wanted is None else wanted.acts
        frame, step = self._position()
        for act in old:
            if act not in new:
                late = after is not None and act.number in self._applied
                self._tell(act, after if late and after is not None else frame, step)
                self._histories.pop(act.number, None)
        for act in new:
            if act not in old:
                self._tell(act, frame if after is None else after, step, "")
        self._held.clear()

    def take(self, after: int) -> Applied | None:
        """What acted on this step, once; `after`: the sequence number that follows it."""
        self.adopt(after)
        return self.taken()

    def taken(self) -> Applied | None:
        """What acted on the pass that ran, once."""
        self._changed = False
        if not self._applied:
            return None
        applied = tuple(self._applied.items())
        self._applied.clear()
        return applied

    @property
    def active(self) -> bool:
        """Whether there is anything to see to when a step was sealed."""
        return self.force is not None or (self._gauge is not None and self._gauge.attending)

    def seal(self, row: Mapping[str, Any]) -> None:
        """A step was sealed: see whose condition holds. `row`: what `step` was given."""
        force = self.force
        if self._gauge is not None:
            self._gauge.attend(force is not None)
        if force is None:
            return
        if self._gauge is not None and isinstance(row["action"], (int, np.integer)):
            self._gauge.discrete = True
        for act in force.acts:
            if act.condition is not None and act.on is not None:
                self._judge(act, row)

    def _judge(self, act: Act, row: Mapping[str, Any]) -> None:
        assert act.condition is not None
        history = self._histories.get(act.number)
        if history is None:
            return
        sources, several = self._sources(), row["several"]
        held: list[bool] = []
        for env in range(self._capture.num_envs):
            values = {name: sealed_value(name, env, act, row, sources) for name in act.condition.names}
            held.append(history.add(env, values))
            ended = (of_env(row["terminated"], env, several), of_env(row["truncated"], env, several))
            if any(flag is not None and bool(flag) for flag in ended):
                history.clear(env)
                held[-1] = False  # of the next episode nothing is known yet
        act.on = held

    def _current(self) -> Force | None:
        """What is in force for the hook that asks, taken over if it is new."""
        wanted = self.wanted
        if wanted is not self.force:
            if self._mode:
                return None
            self.adopt()
        return wanted

    def _envs(self) -> int:
        """Environments of the pass that runs."""
        return self._capture.num_envs

    def _most_envs(self) -> int:
        """Environments that an intervention may name."""
        return self._capture.num_envs

    def _make_gauge(self, model: nn.Module, distribution: Callable[[Any], Any] | None) -> Gauge:
        return Gauge(self, self._capture, model, distribution)

    def _rows(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The rows that belong to the tap's environments; None for another batch."""
        capture = self._capture
        if capture.chosen is not None:
            return tensor[capture.chosen.index] if tensor.dim() > 1 and tensor.shape[0] == capture.chosen.batch else None
        if tensor.dim() <= 1:
            return tensor.reshape(1, -1) if capture.num_envs == 1 else None
        if tensor.shape[0] == capture.num_envs or (capture.fewer and 0 < tensor.shape[0] < capture.num_envs):
            return tensor
        return None

    def _where(self, act: Act) -> tuple[bool, ...] | None:
        if act.env is None and act.on is None:
            return None
        return tuple((act.env is None or env == act.env) and (act.on is None or act.on[env]) for env in range(self._envs()))

    def _put(self, value: Any, tensor: torch.Tensor, result: torch.Tensor) -> Any:
        chosen = self._capture.chosen
        if chosen is not None:
            whole = tensor.clone()
            whole[chosen.index] = result.reshape(tensor[chosen.index].shape)
        else:
            whole = result.reshape(tensor.shape)
        if value is tensor:
            return whole
        return type(value)((whole, *value[1:])) if type(value) in (tuple, list) else None

    def _limit(self, module: Any, args: Any, output: Any) -> Any:
        """Keep what a steered model returns within the policy's limits."""
        if not self._changed or self._limits is None:
            return None
        try:
            tensor = output if isinstance(output, torch.Tensor) else output[0]
            low, high = (limit.to(tensor) for limit in self._limits)
            kept = torch.nan_to_num(tensor).clamp(low, high)
            over = int((kept != tensor).sum())
            if not over:
                return None
            self.counts["actions_clipped"] += over
            return kept if tensor is output else type(output)((kept, *output[1:]))
        except Exception as error:  # noqa: BLE001 - what cannot be limited is not steered any more
            for act in () if self.wanted is None else self.wanted.acts:
                act.dead = "error"
            self._complain(f"action_limits could not be kept, and steering ended: {type(error).__name__}: {error}")
            return None

    # details

    def _keep(self, acts: Sequence[Act], before: Sequence[Act]) -> None:
        if len(acts) != len(before):
            for act in before:
                if act not in acts:
                    self.causes[act.id] = act.dead
                    while len(self.causes) > _MAX_CAUSES:
                        self.causes.pop(next(iter(self.causes)))
            self.counts["ended"] += len(before) - len(acts)
            self.wanted = Force(acts) if acts else None

    def _tell(self, act: Act, frame: int, step: int, cause: Cause | None = None) -> None:
        ended = cause is None
        self._events.append(
            Intervention(
                run=self._run,
                boot=self._boot,
                seq=self._told,
                number=act.number,
                id=act.id,
                event="end" if ended else "start",
                cause=(act.dead or "released") if ended else "",
                frame=frame,
                step=step,
                monotonic_ns=monotonic_ns(),
                wall_ns=time_ns(),
                told=_told(act),
            )
        )
        self._told += 1

    def _index(self, point: str, dictionary: Dictionary | None) -> int:
        names = [p.name for p in self._capture.points]
        if point not in names:
            whose = f"{dictionary.name!r} needs tap point" if dictionary is not None else "there is no tap point"
            raise SteeringError(f"{whose} {point!r}; the tap reads {', '.join(names) or 'none'}: tap it as well", reason="not_allowed")
        index = names.index(point)
        if not self.steerable(index) or self._capture.points[index].module is None:
            raise SteeringError(f"{point!r} is a part, or an array; only what a module passes is changed", reason="not_allowed")
        return index

    def _check(self, condition: Condition, dictionary: Dictionary | None) -> None:
        sources = self._sources()
        for name in condition.names:
            if name in sources or name in NAMES or name == "action" or name.startswith("action["):
                continue
            if is_feature(name) and dictionary is not None:
                if int(name[1:]) < dictionary.features:
                    continue
                raise PredicateError(f"there is no feature {name}; {dictionary.name!r} has f0 to f{dictionary.features - 1}")
            known = ", ".join((*sources, *NAMES)[:16])
            raise PredicateError(f"the agent knows no {name!r} while it acts; it knows {known}")


def _told(act: Act) -> dict[str, Any]:
    """What is said of an intervention, as plain data."""
    edit, dictionary = act.edit, act.dictionary
    return {
        "author": act.author,
        "reason": act.reason,
        "operation": edit.operation,
        "strength": edit.strength,
        "unit": act.unit,
        "feature": edit.feature,
        "direction": None if edit.direction is None else len(edit.direction),
        "dictionary": None if dictionary is None else dictionary.name,
        "dictionary_hash": None if dictionary is None else dictionary.hash,
        "output": act.output_name,
        "env": act.env,
        "condition": None if act.condition is None else act.condition.text,
        "shadow": act.shadow,
        "ttl_s": act.ttl_s,
        "max_effect": act.max_effect,
    }


def _single(value: Any) -> Any:
    """(1, d) float32 view of a tensor that is one, in the host's memory and of no graph; else None."""
    try:
        array = value.numpy()
    except (RuntimeError, TypeError, AttributeError):  # part of a graph, on a device, bfloat16, or no tensor at all
        return None
    return array if array.ndim == 2 and array.dtype == np.float32 and len(array) == 1 else None


def _added(y: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    moved = y + (change if change.dtype == y.dtype and change.device == y.device else change.to(y))
    if len(y) == 1:
        return moved
    return torch.where((change != 0).any(dim=1, keepdim=True).to(y.device), moved, y)


def _finite(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SteeringError(f"{name} is {str(value)[:40]!r}; a finite number is needed", reason="bad_request")
    return float(value)
