"""Forward passes of a language model on the agent's thread: which sequences a pass goes on with, and what of it counts.

    before the pass   which tokens, how much of the cache there is, whose sequence it is; the pass before it is settled
    after the pass    a copy of the logits; with what the points kept it waits until it is settled
    settled           by the next pass, or the end of the prompt: the cache tells how many of its tokens were accepted

1. Sequences are known by their cache: a pass that finds it empty (or has none) begins new ones, one for each row of the
   batch. A cache that nobody saw being filled begins new ones in the middle of a text.
2. In speculative and prompt-lookup decoding a pass runs tokens that may be rejected; the cache is cropped then, so its
   length when the next pass comes says how many stand.
3. Without a cache, a pass that repeats the one before it and has one token more goes on with it.
4. Nothing here reads a value from a device: shapes and cache lengths alone (a static cache keeps its length there, and is asked).

Costs about 20 µs a pass besides the copies.
"""

from __future__ import annotations

import inspect
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from time import monotonic_ns, perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from interlatent_live.agent_side.lm_capture import TokenCapture
    from interlatent_live.agent_side.lm_steering import TokenSteering
    from interlatent_live.agent_side.rows import Applied

__all__ = ["Asked", "Pass", "Passes", "Sequences"]

_SAMPLE: Final = 16
"""One pass of so many is timed."""
_MAX_OPEN: Final = 64
"""Caches whose sequences may be gone on with."""


@dataclass(eq=False)
class Asked:
    """What `tap.prompt` was given."""

    texts: Sequence[str] = ()
    labels: Sequence[Mapping[str, str]] = ()
    begun: int = 0
    """Sequences that began in it."""
    pair: str = ""
    arm: str = ""
    read: Callable[[int, Sequence[int], Sequence[float], Sequence[bool]], None] | None = None
    """Told, on the sender's thread, the rows of its first sequence: prompt, tokens, log-probabilities, whether generated."""

    def text(self, number: int) -> str | None:
        """That of its sequence `number`."""
        return self.texts[number] if number < len(self.texts) else None

    def label(self, number: int) -> Mapping[str, str]:
        """Those of its sequence `number`; one set is for all."""
        if len(self.labels) == 1:
            return self.labels[0]
        return self.labels[number] if number < len(self.labels) else {}


@dataclass(eq=False)
class Sequences:
    """The sequences of one batch, from their first pass on."""

    rows: int
    asked: Asked
    first: int
    """Number of its row 0 among the sequences of `asked`."""
    end: int = 0
    """Columns of the cache that its passes filled."""
    over: bool = False


@dataclass(eq=False, slots=True)
class Pass:
    """One forward pass, as it waits for the sender's thread. Tensors are copies on their own device."""

    of: Sequences
    past: int
    """Columns of the cache before it."""
    width: int
    """Columns that it ran."""
    ids: Tensor
    """(rows, width)"""
    clock_ns: int
    mask: Tensor | None = None
    """(rows, width) nonzero: a token, not padding. None: all are."""
    before: Tensor | None = None
    """(rows, past) likewise, where the cache was filled by others."""
    first: bool = False
    """Whether its sequences begin with it."""
    skip: int = 0
    """Columns that it repeats."""
    keep: int = 0
    """Columns that count, those repeated included; the rest was rejected."""
    given: int = 0
    """Columns that are no candidates, in a first pass."""
    ends: bool = False
    """Whether nothing more comes of its sequences."""
    whole: bool = True
    """Whether the columns before it were seen."""
    kept: tuple[Tensor | None, ...] | None = None
    """By tap point: (rows, tokens, …); None altogether: dropped by the queue."""
    logits: Tensor | None = None
    """(rows, k, vocabulary) of the last k columns."""
    hidden: Tensor | None = None
    """(rows, width, d) what the head reads, where logits of all columns were not computed."""
    keys: tuple[Tensor, Tensor] | None = None
    """Of the cache's last column, after the pass before it and before it: equal unless rows were reordered."""
    taken: bool = False
    nbytes: int = 0
    cache: Any = None
    steps: int = 0
    policy_version: int = 0
    number: int = -1
    """As steering counts passes; -1 without."""
    applied: Applied | None = None
    """Interventions that acted on it."""
    cached: bool = True
    """Whether its caller keeps a cache."""
    broken: bool = False
    """Whether its rows are other texts' than those of the pass before."""


class Passes:
    """The model's own hooks, and the queue to the sender's thread. Nothing here blocks or raises."""

    def __init__(self, model: nn.Module, capture: TokenCapture, queue_bytes: int, *, prompts: bool, say: Callable[[str], None]) -> None:
        self.queue: deque[Pass] = deque()
        self.asked = Asked()
        self.steps = 0
        """Columns run so far."""
        self.policy_version = 0
        self.blind = 0
        """Passes without token numbers, as from `inputs_embeds`."""
        self.failures = 0
        self.overheads: deque[int] = deque(maxlen=1024)
        self.steering: TokenSteering | None = None
        self.learning = False
        """Whether a pass runs that only shows what passes where."""
        self._model: Any = getattr(model, "_orig_mod", model)  # torch.compile puts the user's module one level down
        self._capture, self._say = capture, say
        self._limit, self._prompts = queue_bytes, prompts
        self._names = [name for name in inspect.signature(self._model.forward).parameters if name != "self"]
        self._handles: list[Any] = []
        self._base: Any = None
        """What the head reads, where prompts are looked at."""
        self._looking: Any = None
        """Its hook, during a pass whose logits are not all computed."""
        self._current: Pass | None = None
        self._pending: Pass | None = None
        self._open: dict[int, tuple[Any, Sequences]] = {}
        self._heavy: deque[Pass] = deque()
        self._in = 0
        self.out = 0
        """Bytes that the sender's thread has taken."""
        self._uncached: tuple[Tensor, Sequences] | None = None
        self._last_keys: tuple[Sequences, Tensor] | None = None
        self._wants_hidden = False
        self._passes = 0
        self._spent = 0

    def attach(self) -> None:
        """Put the model's own hooks on."""
        self._handles.append(self._model.register_forward_pre_hook(self._hook(self._before), with_kwargs=True))
        self._handles.append(self._model.register_forward_hook(self._hook(self._after), with_kwargs=True))
        base = getattr(self._model, "base_model", None)
        self._base = base if self._prompts and base is not self._model else None
        if self._base is not None and self._capture.untraced:  # compiled graphs have the hooks that they began with
            self._handles.append(self._base.register_forward_hook(self._hook(self._below)))

    def detach(self) -> None:
        """Take them off. Twice is once."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stop_looking()
        self._current = None

    def begin(self, asked: Asked) -> None:
        """Sequences that begin from now on are `asked`'s."""
        self.settle(ends=True)
        self.asked = asked

    def settle(self, *, ends: bool) -> None:
        """Decide what of the last pass counts and hand it over; `ends`: its sequences are over."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._settle(pending, ends)
        if ends:
            for _, sequences in self._open.values():
                sequences.over = True
            self._open.clear()
            self._uncached = self._last_keys = None

    @property
    def idle(self) -> bool:
        """Whether no pass runs, or waits to be settled or taken; as another thread sees it."""
        return self._current is None and self._pending is None and not self.queue

    def _hook(self, function: Callable[..., None]) -> Callable[..., None]:
        """`function` as a hook that never raises, is left out of compiled graphs, and does nothing in a copy of the model."""
        return (_untraced(_Guarded) if self._capture.untraced else _Guarded)(self, function)

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        capture, steering = self._capture, self.steering
        if steering is not None and steering.measuring:
            return
        began = perf_counter_ns()
        self._current, capture.tokens = None, 0
        if capture.resting:
            return
        if self.learning:
            capture.batch = capture.tokens = 1
            return
        given = {**dict(zip(self._names, args, strict=False)), **kwargs} if args else kwargs
        ids = given.get("input_ids")
        if ids is None or ids.ndim != 2:
            self.blind += 1
            self._say("a pass without input_ids (from inputs_embeds, perhaps) has no tokens to show, and is not kept")
            return
        rows, width = ids.shape
        held = given.get("past_key_values")
        past = _length(held)
        sequences, skip = self._sequences(ids, rows, width, held, past, given)
        first = sequences is None
        if first:
            if self._pending is not None:
                self.settle(ends=True)
            sequences = Sequences(rows, self.asked, self.asked.begun)
            self.asked.begun += rows
        else:
            self.settle(ends=False)
        assert sequences is not None
        one = Pass(sequences, past, width, ids.clone(), monotonic_ns(), first=first, skip=skip, steps=self.steps)
        one.policy_version = self.policy_version
        one.mask, one.before = _masks(given.get("attention_mask"), past, width, first)
        one.whole = first or skip > 0 or past == sequences.end
        if not first and rows > 1 and self._last_keys is not None and self._last_keys[0] is sequences and past == sequences.end:
            keys = _last_key(held)
            one.keys = None if keys is None else (self._last_keys[1], keys)
        wanted = given.get("logits_to_keep", 0)
        self._wants_hidden = self._base is not None and type(wanted) is int and 0 < wanted < width
        if self._looking is not None:  # of a pass that raised
            self._stop_looking()
        if self._wants_hidden and not capture.untraced:  # for this pass alone: a hook costs every pass that it stands in
            self._looking = self._base.register_forward_hook(self._hook(self._below))
        one.cached, one.cache = given.get("use_cache") is not False, held
        if steering is not None:
            one.number = steering.begin()
        capture.batch, capture.tokens, capture.before = rows, width, past
        capture.slots[:] = [None] * len(capture.slots)
        self._current = one
        self._spent = perf_counter_ns() - began

    def _stop_looking(self) -> None:
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.remove()

    def _below(self, module: Any, args: Any, output: Any) -> None:
        one = self._current
        if one is not None and self._wants_hidden and not (self.steering is not None and self.steering.measuring):
            hidden = getattr(output, "last_hidden_state", None)
            if hidden is None and isinstance(output, tuple) and output:
                hidden = output[0]
            one.hidden = None if hidden is None else hidden.detach().clone()

    def _after(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        steering, capture = self.steering, self._capture
        if steering is not None and steering.measuring:
            return
        one, self._current = self._current, None
        if one is None:
            return
        began = perf_counter_ns()
        if self._looking is not None:
            self._stop_looking()
        if steering is not None:
            one.applied = steering.taken()
        one.kept = tuple(capture.slots)  # type: ignore[arg-type]
        capture.slots[:] = [None] * len(capture.slots)
        capture.tokens = 0
        logits = getattr(output, "logits", None)
        if logits is None and isinstance(output, (tuple, list)):
            logits = next((item for item in output if getattr(item, "ndim", 0) == 3), None)
        k = 0
        if logits is not None and logits.ndim == 3:
            k = logits.shape[1]
            one.logits = logits.detach().clone() if logits.requires_grad else logits.clone()
        if k == one.width:
            one.hidden = None
        cache = getattr(output, "past_key_values", None) or one.cache
        one.given = one.width - (k - 1) if cache is not None and one.first and 1 < k < one.width else one.width
        one.keep = one.width
        one.cache = cache
        sequences = one.of
        sequences.end = one.past + one.width
        if cache is not None:
            self._remember(cache, sequences)
            keys = _last_key(cache) if sequences.rows > 1 else None
            self._last_keys = None if keys is None else (sequences, keys)
        elif not one.cached:
            self._uncached = (one.ids, sequences)
        self._pending = one
        self.steps += one.width - one.skip
        self._passes += 1
        gate = capture.gate
        if gate and not capture.resting:
            self.overheads.append(self._spent + perf_counter_ns() - began + capture.hook_ns)
            capture.hook_ns = 0
            gate.clear()
        elif not self._passes % _SAMPLE:
            gate.append(1)

    def _sequences(
        self, ids: Tensor, rows: int, width: int, cache: Any, past: int, given: Mapping[str, Any]
    ) -> tuple[Sequences | None, int]:
        """The sequences that a pass goes on with, and how many of its columns repeat; None: it begins new ones."""
        if past:
            known, sequences = self._open.get(id(cache), (None, None))
            if known is None or sequences is None or known() is not cache or sequences.over or sequences.rows != rows:
                return None, 0
            last, end = self._pending, sequences.end
            if last is not None and last.of is sequences and last.width > 1:
                end = last.past + min(last.width, max(0, past - last.past))
            return (sequences, 0) if past >= end else (None, 0)  # a cache that was cut back to go on otherwise is another text
        if given.get("use_cache") is False and self._uncached is not None and not self._uncached[1].over:
            before, sequences = self._uncached
            if before.shape == (rows, width - 1) and bool((ids[:, :-1] == before).all()):
                return sequences, width - 1
        return None, 0

    def _remember(self, cache: Any, sequences: Sequences) -> None:
        known = self._open.get(id(cache))
        if known is None or known[1] is not sequences:
            while len(self._open) >= _MAX_OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[id(cache)] = (weakref.ref(cache), sequences)

    def _settle(self, one: Pass, ends: bool) -> None:
        cache, one.cache = one.cache, None
        if cache is not None and one.width > 1:
            one.keep = min(one.width, max(0, _length(cache) - one.past))
        one.of.end = one.past + one.keep
        one.ends = ends
        if ends:
            one.of.over = True
        one.nbytes = one.of.rows * one.width * self._capture.token_bytes  # where a point did not fire, an upper bound
        one.nbytes += sum(t.nbytes for t in (one.logits, one.hidden) if t is not None)
        self._in += one.nbytes
        self.queue.append(one)
        heavy = self._heavy
        while heavy and heavy[0].taken:
            heavy.popleft()
        heavy.append(one)
        while self._in - self.out > self._limit and len(heavy) > 1:
            oldest = heavy.popleft()
            if not oldest.taken:  # its rows are counted as dropped by the sender, who knows which are data
                oldest.kept = oldest.logits = oldest.hidden = None
                self._in -= oldest.nbytes


@cache
def _untraced(kind: type[_Guarded]) -> type[_Guarded]:
    """The hook at which torch.compile ends its graph."""
    import torch

    disable: Any = torch.compiler.disable
    return type("_GuardedUntraced", (kind,), {"__slots__": (), "__call__": disable(kind.__call__)})


class _Guarded:
    """A hook that copies, pickles and deep-copies as one that does nothing."""

    __slots__ = ("function", "passes")

    def __init__(self, passes: Passes, function: Callable[..., None]) -> None:
        self.passes, self.function = passes, function

    def __call__(self, *args: Any) -> None:
        try:
            self.function(*args)
        except Exception as error:  # noqa: BLE001 - nothing may be raised into the user's forward pass
            self.passes.failures += 1
            self.passes._say(f"a pass was not kept: {type(error).__name__}: {error}")

    def __reduce__(self) -> tuple[Any, ...]:
        from contextlib import nullcontext

        return getattr, (nullcontext(), "__exit__")


def _length(cache: Any) -> int:
    return 0 if cache is None else int(cache.get_seq_length())


def _last_key(cache: Any) -> Tensor | None:
    """(rows, 4) of the last column's keys in the last layer, which differ between rows whose texts differ."""
    layers: Any = getattr(cache, "layers", None) or [None]
    keys: Any = getattr(layers[-1], "keys", None)
    if keys is None or keys.ndim != 4 or type(layers[-1]).__name__ != "DynamicLayer":
        return None
    found: Tensor = keys[:, 0, -1, :4].detach().clone()
    return found


def _masks(mask: Any, past: int, width: int, first: bool) -> tuple[Tensor | None, Tensor | None]:
    """Which of the pass's columns are tokens, and which of those before it; None: all."""
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if mask is None or not hasattr(mask, "ndim"):
        return None, None
    if mask.ndim == 4:  # of a static cache: what the last token may look at
        seen = mask[:, 0, -1, : past + width]
        seen = seen if str(seen.dtype) == "torch.bool" else seen >= 0
    elif mask.ndim == 2 and not (first and past):
        return mask[:, -width:] != 0, None
    elif mask.ndim == 2:
        seen = mask[:, -(past + width) :] != 0
    else:
        return None, None
    if seen.shape[1] < past + width:  # of the new columns only
        return seen[:, -width:].clone(), None
    return seen[:, past:].clone(), seen[:, :past].clone() if first and past else None
