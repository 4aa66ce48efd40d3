"""Steering a language model: what `Steering` does, for passes whose rows are tokens.

1. What was asked for is taken over before a pass, so that one pass goes with it in all of its layers or in none; it ends
   within a pass where its time is over or it was released. A row of the batch is an environment.
2. The agent's thread knows passes, not frames: which frames a pass became is known when the sender's thread has made them.
   So starts, ends and effects are noted by pass and told once that is placed.
3. The effect is the KL divergence of the next token's distribution at the last column, steered from unsteered, given the
   same text and what the cache holds: of a copy of the cache, since a second pass writes into it. Caches that cannot be cut
   back (static, sliding) are not measured.
4. Keys and values that steered tokens left in the cache stay there after a release, as they do in the text.

Conditions are judged where rows are made, which for tokens is another thread: they are refused.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

import torch

from interlatent_live.agent_side.effects import Gauge
from interlatent_live.agent_side.steering import Steering
from interlatent_live.analyzer.edit import Edit
from interlatent_live.stream.errors import SteeringError
from interlatent_live.stream.intervention import MAX_OUTCOMES, Effects, Intervention, Outcome

if TYPE_CHECKING:
    from torch import nn

    from interlatent_live.agent_side.intervention import Act, Cause, Force
    from interlatent_live.agent_side.lm_capture import TokenCapture

__all__ = ["TokenSteering"]

_PLACES: Final = 8_192
"""Passes whose frames are remembered."""
_ROWS: Final = 4_096
"""Rows of a batch at most, for an intervention on one of them."""


class TokenSteering(Steering):
    """The interventions of a language model's tap."""

    _capture: TokenCapture

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.begun = 0
        """Passes so far; the number of the next one."""
        self.idle: Callable[[], tuple[int, int] | None] = lambda: None
        """Next sequence number and step where no pass runs or waits, else None; asked on the sender's thread."""
        self._places: OrderedDict[int, tuple[int, int, int]] = OrderedDict()
        self._placed = -1
        self._thread = 0
        self._waiting: deque[Intervention] = deque()
        self._measured: deque[Effects] = deque()

    def open(self, model: nn.Module | None, *given: Any) -> None:
        """As `Steering.open`. Raises SteeringError for limits that are of an agent's actions."""
        if self.policy.action_limits is not None:
            raise SteeringError("action_limits are of an agent's actions, and a language model writes tokens: leave them out")
        super().open(model, *given)
        self._position = lambda: (self.begun - self.measuring, 0)

    def start(self, **asked: Any) -> Act:
        """As `Steering.start`."""
        if asked.get("condition") is not None:
            raise SteeringError(
                "conditions are judged on an agent's steps; a language model's tokens are read on another thread: leave `when` out",
                reason="not_allowed",
            )
        return super().start(**asked)

    def check(self, asked: Mapping[str, Any]) -> None:
        """Raise SteeringError or DictionaryError for what `start` would refuse whatever else is in force. For any thread."""
        if asked.get("condition") is not None or asked.get("ttl_s") is not None:
            raise SteeringError("an intervention on a prompt lasts as long as its text: leave `when` and `ttl_s` out", reason="bad_request")
        operation = asked["operation"]
        if operation not in self.policy.operations:
            raise SteeringError(f"operation {operation!r} is not allowed; {', '.join(self.policy.operations)} are", reason="not_allowed")
        if asked.get("feature") is None:
            return
        found = self._dictionaries.named(asked.get("dictionary"))
        for point in (found.cfg.input, found.cfg.output):
            self._index(point, found)
        strength = asked.get("strength", 0.0)
        if isinstance(strength, bool) or not isinstance(strength, (int, float)):
            raise SteeringError(f"strength is {str(strength)[:40]!r}; a finite number is needed", reason="bad_request")
        Edit(operation, float(strength), asked["feature"]).check(found)

    def end(self, id: str | None, cause: Cause) -> list[str]:
        """As `Steering.end`; on the model's own thread it is taken over at once."""
        ended = super().end(id, cause)
        if get_ident() == self._thread and not self._capture.tokens:
            self.adopt()
        return ended

    # on the agent's thread

    def begin(self) -> int:
        """Before a pass: its number."""
        self._thread = get_ident()
        self.adopt()
        if self._gauge is not None:
            self._gauge.attend(self.force is not None)
        number, self.begun = self.begun, self.begun + 1
        return number

    @property
    def measuring(self) -> bool:
        """Whether a pass runs that is the gauge's own."""
        return self._gauge is not None and self._gauge._running

    def _current(self) -> Force | None:
        return self.force

    def _envs(self) -> int:
        return self._capture.batch or 1

    def _most_envs(self) -> int:
        return _ROWS

    def _rows(self, tensor: torch.Tensor) -> torch.Tensor | None:
        batch = self._capture.batch
        if tensor.dim() < 2 or not batch or tensor.shape[0] % batch:
            return None
        return tensor if tensor.shape[0] == batch else tensor.reshape(batch, -1, tensor.shape[-1])  # experts see tokens in one row

    def _make_gauge(self, model: nn.Module, distribution: Any) -> Gauge:
        return _TokenGauge(self, self._capture, model, distribution)

    # on the sender's thread

    def placed(self, number: int, first: int, last: int, step: int) -> None:
        """Pass `number` became the frames `first` to `last`, beginning with `step`; last < first: none."""
        self._places[number] = first, max(first, last), step
        self._placed = max(self._placed, number)
        while len(self._places) > _PLACES:
            self._places.popitem(last=False)

    def drain(self) -> Iterator[Intervention | Effects]:
        """As `Steering.drain`, as far as their frames are known."""
        for one in super().drain():
            if isinstance(one, Effects):
                self._measured.append(one)
            else:
                self._waiting.append(one)
        while self._waiting and (place := self._place(self._waiting[0].frame)) is not None:
            yield replace(self._waiting.popleft(), frame=place[0], step=place[2])
        while self._measured:
            places = [self._place(number) for number in self._measured[0].frame]
            frames = tuple(place[1] for place in places if place is not None)
            if len(frames) < len(places):
                break
            yield replace(self._measured.popleft(), frame=frames)

    def _place(self, number: int) -> tuple[int, int, int] | None:
        """First and last frame, and step, of a pass; None while that is not known."""
        found = self._places.get(number)
        if found is None and (rest := self.idle()) is not None:
            found = rest[0], rest[0], rest[1]
        if found is None and number < self._placed:  # it could not be read
            found = next((place for known, place in self._places.items() if known > number), None)
        return found


class _TokenGauge(Gauge):
    """Of the next token's distribution."""

    _capture: TokenCapture
    first = True

    def _again(self, module: nn.Module, args: Any, kwargs: Any, mode: int) -> Any:
        held = kwargs.get("past_key_values")
        if held is not None:
            before = self._capture.before
            kinds = {type(layer).__name__ for layer in getattr(held, "layers", ())}
            if type(held).__name__ != "DynamicCache" or kinds - {"DynamicLayer"}:
                raise ValueError(f"a {type(held).__name__} cannot be cut back")
            fresh = type(held)() if not before else copy.deepcopy(held)
            if before and (more := held.get_seq_length() - before) > 0:
                fresh.crop(-more)
            kwargs = kwargs | {"past_key_values": fresh}
        tokens, self._capture.tokens = self._capture.tokens, 0
        try:
            return super()._again(module, args, kwargs, mode)
        finally:
            self._capture.tokens = tokens

    def _effect(self, steered: Any, plain: Any) -> tuple[str, float, Outcome | None]:
        p, q = (torch.log_softmax(_logits(one)[:, -1].detach().float(), -1) for one in (steered, plain))
        odds, others = p.exp(), q.exp()
        value = float(torch.where(odds > 0, odds * (p - q), 0.0).sum(-1).mean())
        odds, others = odds.mean(0), others.mean(0)
        top = torch.maximum(odds, others).topk(min(MAX_OUTCOMES, len(odds))).indices.sort().values
        if not math.isfinite(value):
            return "kl", math.nan, None
        return "kl", max(0.0, value), Outcome("share", *(tuple(part.tolist()) for part in (top, odds[top], others[top])))


def _logits(output: Any) -> torch.Tensor:
    found = getattr(output, "logits", None)
    if found is None:
        found = next(item for item in output if getattr(item, "ndim", 0) == 3)
    return found  # type: ignore[no-any-return]
