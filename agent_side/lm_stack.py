"""Passes become frames here, on the sender's thread: one row for each token that was read, with what was predicted from it.

1. Consecutive passes of the same sequences are laid side by side, columns that were rejected or repeated left out.
2. Rows are the columns that are neither padding nor fed to a sequence that had ended while the rest of its batch went on.
   In a batch, a sequence has ended where an end token or a padding token was fed during generation; that token has no row,
   as the last token of a sequence on its own has none.
3. `logprob` of a token is the model's, in nats, before temperature or any other processor, from the logits of the token
   before it. Of prompts whose logits `generate` does not compute, they are computed here from what the head reads, unless
   the last column's differ from the model's own: then they stay unknown, and that is told.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.agent_side.lm_activations import activations_of, home, host
from interlatent_live.agent_side.lm_predictions import Predictions, gathered
from interlatent_live.agent_side.lm_text import KINDS, Text
from interlatent_live.agent_side.metrics import Metric
from interlatent_live.agent_side.rows import Stacker, acting
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.prompt import MAX_TEXT, MAX_TOKENS, Prompt, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

    from interlatent_live.agent_side.lm_capture import TokenCapture
    from interlatent_live.agent_side.lm_passes import Pass, Sequences
    from interlatent_live.stream.manifest import Manifest

__all__ = ["METRICS", "TokenStacker"]

Array = npt.NDArray[Any]

METRICS: Final = (
    Metric("logprob", unit="nat", description="log-probability of this token given those before it; NaN for the first"),
    Metric("position", unit="tokens", description="tokens before it in its text"),
    *(Metric(name, description=what) for name, what in KINDS.items()),
    Metric("next_entropy", unit="nat", scope="transition", description="entropy of the prediction made from it"),
    Metric("next_top", scope="transition", description="probability of the most likely next token"),
)
_MAX_BATCH_ROWS: Final = 4096
_MAX_BATCH_BYTES: Final = 16 << 20
_REMEMBERED: Final = 256
"""Prompts that are told again to a subscriber that comes late."""
_MOST_OPEN: Final = 128


@dataclass(eq=False)
class _State:
    """Sequences as the sender's thread follows them; arrays are (rows,)."""

    of: Sequences
    count: Array
    """Tokens so far."""
    prompt: Array
    episode: Array
    finished: Array
    base: int
    """Step of position 0."""
    last: Tensor | None = None
    """(rows, vocabulary) log-probabilities after the last column."""
    broken: bool = False
    """Whether rows of the batch changed places."""


class TokenStacker(Stacker):
    """Makes batches of passes, and tells prompts and the text of tokens; for the sender's thread alone."""

    def __init__(
        self,
        capture: TokenCapture,
        manifest: Manifest,
        text: Text,
        complain: Callable[[str], None],
        *,
        head: Callable[[], tuple[Tensor, Tensor | None] | None],
        stops: frozenset[int],
        taken: Callable[[Pass], None],
        seen: Callable[[FrameBatch], None],
    ) -> None:
        """`head()`: weight and bias of the model's head. `stops`: tokens that end a sequence of a batch. `taken`: told of each
        pass whose tensors were taken. `seen`: given every batch."""
        super().__init__(capture, manifest, METRICS, complain)
        self._text, self._stops = text, np.array(sorted(stops), np.int64)
        self._predictions = Predictions(head, complain)
        self._taken, self._seen = taken, seen
        self._states: dict[int, _State] = {}
        self._episodes: dict[int, int] = {}
        self._prompts = 0
        self._known: Any = ()
        self._told: set[int] = set()
        self._news: deque[Prompt | Vocabulary] = deque()
        self._recent: deque[Prompt] = deque(maxlen=_REMEMBERED)
        self.placed: Callable[[int, int, int, int], None] | None = None
        """Told, where there is steering, which frames a pass became: number, first, last, step."""
        self.next_step = 0
        self.padding = self.rejected = self.reordered = 0
        """Columns that are no rows: padding, rejected by speculative decoding, of beams that changed places."""

    def messages(self, again: bool) -> Iterator[Prompt | Vocabulary]:
        """Prompts and tokens not told yet; `again`: those told before as well, for somebody who came late."""
        if again:
            yield from self._recent
            yield from self._words(sorted(self._told))
        while self._news:
            yield self._news.popleft()

    def label_of(self, prompt: int) -> Prompt | None:
        """One of the latest prompts."""
        return next((p for p in reversed(self._recent) if p.prompt == prompt), None)

    def passes(self, passes: Sequence[Pass]) -> Iterator[FrameBatch]:
        """Batches of the rows of `passes`, in order."""
        import torch

        with torch.inference_mode():
            for _, group in groupby(passes, key=lambda one: id(one.of)):
                together: list[Pass] = []
                held = 0
                for one in group:
                    if together and (one.first or held + one.nbytes > _MAX_BATCH_BYTES):
                        yield from self._stacked_rows(together)
                        together, held = [], 0
                    together.append(one)
                    held += one.nbytes
                yield from self._stacked_rows(together)

    def _stacked_rows(self, passes: list[Pass]) -> Iterator[FrameBatch]:
        self.learn_points()
        try:
            yield from self._rows(passes)
        except (ValueError, TypeError, RuntimeError, IndexError, KeyError) as error:
            self._complain(f"a pass could not be read ({type(error).__name__}: {error})")

    def learn_points(self) -> None:
        """Note what passes at the tap points, as far as hooks have seen it."""
        layouts = tuple(self._capture.layouts)
        if self.stacked is None or layouts != self._known:
            self._known = layouts
            self.stacked = replace(
                self._base,
                tap_points=tuple(layout.spec for layout in layouts if layout is not None),
                metrics=tuple(metric.spec for metric in METRICS),
            )

    def _rows(self, passes: list[Pass]) -> Iterator[FrameBatch]:
        state = self._state(passes[0])
        ids = home([one.ids[:, one.skip : one.keep] for one in passes])
        rows = ids.shape[0]
        self.rejected += sum((one.width - one.keep) * rows for one in passes)
        widths = [max(0, one.keep - one.skip) for one in passes]
        at = np.repeat(np.arange(len(passes)), widths)  # (columns,) the pass of each
        valid = self._valid(passes, ids, at, state)
        hollow = np.array([one.kept is None for one in passes])[at]
        positions = state.count[:, None] + np.cumsum(valid, axis=1) - 1
        state.count = state.count + valid.sum(axis=1)
        column, row = np.nonzero(valid.T)  # by time, then by row
        predicted = self._predicted(passes, ids, valid, widths, state)
        activations, present = activations_of(self._known, passes, widths, row, column)
        generated = np.concatenate([_generated(one) for one in passes])
        for one in passes:
            self._taken(one)
        if self.placed is not None:
            self._place(passes, np.searchsorted(at[column], np.arange(len(passes) + 1)), state.base + positions[row, column])
        if not len(column):
            return
        token, position = ids[row, column], positions[row, column]
        clock = np.array([one.clock_ns for one in passes], np.int64)[at][column]
        ends = np.zeros(len(column), bool)
        if passes[-1].ends:
            for env in range(rows):
                mine = np.flatnonzero(row == env)
                ends[mine[-1:]] = True
        step = state.base + position
        self.next_step = max(self.next_step, int(step.max()) + 1)
        values = np.full((len(column), len(METRICS)), np.nan)
        values[:, 0] = predicted["logprob"][row, column]
        values[:, 1] = position
        values[:, 2 : 2 + len(KINDS)] = self._text.kinds(token)
        values[:, -2] = predicted["entropy"][row, column]
        values[:, -1] = predicted["probs"][row, column, 0]
        table: dict[str, Array] = {
            "step": step.astype(np.int64),
            "env": row.astype(np.int32),
            "episode": state.episode[row].astype(np.int32),
            "episode_step": position.astype(np.int32),
            "monotonic_ns": clock,
            "wall_ns": clock + (time.time_ns() - time.monotonic_ns()),
            "policy_version": np.array([one.policy_version for one in passes], np.int32)[at][column],
            "forward_age": np.zeros(len(column), np.int32),
            "metrics": values,
            "truncated": ends,
            "prompt": state.prompt[row].astype(np.int32),
            "position": position.astype(np.int32),
            "token": token.astype(np.int32),
            "special": self._text.is_special(token),
            "generated": generated[column],
            "next_tokens": predicted["tokens"][row, column].astype(np.int32),
            "next_probs": predicted["probs"][row, column].astype(np.float32),
        }
        if any(one.applied for one in passes):
            table["intervention"] = acting([one.applied for one in passes], rows).reshape(len(passes), rows, -1)[at[column], row]
        read = passes[0].of.asked.read
        if read is not None and passes[0].of.first == 0 and (row == 0).any():
            mine = row == 0
            read(int(state.prompt[0]), table["token"][mine].tolist(), values[mine, 0].tolist(), table["generated"][mine].tolist())
        self._tell(np.concatenate([table["token"], table["next_tokens"].reshape(-1)]))
        yield from self._batches(table, activations, present, hollow[column])

    def _place(self, passes: list[Pass], begins: Array, steps: Array) -> None:
        """Tell which frames the passes become. `begins`: by pass, and at the end: its first row; `steps`: by row."""
        assert self.placed is not None
        for one, low, high in zip(passes, begins[:-1].tolist(), begins[1:].tolist(), strict=True):
            if one.number >= 0:
                step = int(steps[low]) if low < len(steps) else self.next_step
                self.placed(one.number, self.next_seq + low, self.next_seq + high - 1, step)

    def _state(self, one: Pass) -> _State:
        """Of its sequences; a first pass makes it, and tells their prompts."""
        known = self._states.get(id(one.of))
        if known is not None and known.of is one.of:
            if not one.whole:
                known.last = None
            return known
        rows = one.of.rows
        before = np.full(rows, one.past, np.int64) if one.before is None else _broad(host(one.before), rows).sum(axis=1).astype(np.int64)
        episodes = np.array([self._episodes.get(env, -1) + 1 for env in range(rows)])
        self._episodes |= dict(enumerate(episodes.tolist()))
        state = _State(
            one.of, before, self._prompts + np.arange(rows), episodes, np.zeros(rows, bool), self.next_step,
        )  # fmt: skip
        ids = host(one.ids)
        mask = np.ones(ids.shape, bool) if one.mask is None else _broad(host(one.mask), rows)
        for env in range(rows):
            given = ids[env, : one.given][mask[env, : one.given] != 0]
            number = one.of.first + env
            text = one.of.asked.text(number)
            if text is None:
                text = b"".join(self._text.of(int(token)) for token in given[:MAX_TEXT]).decode("utf-8", "replace")
                text = text.removeprefix(" ")  # tokenizers of words and of pieces put one before the first
            prompt = Prompt(
                self._base.run, self._base.boot, self._prompts + env, env, int(episodes[env]), time.time_ns(), len(given), text[:MAX_TEXT],
                one.of.asked.label(number), one.of.asked.pair, one.of.asked.arm,
            )  # fmt: skip
            self._news.append(prompt)
            self._recent.append(prompt)
        self._prompts += rows
        while len(self._states) >= _MOST_OPEN:
            self._states.pop(next(iter(self._states)))
        self._states[id(one.of)] = state
        return state

    def _valid(self, passes: list[Pass], ids: Array, at: Array, state: _State) -> Array:
        """(rows, columns) which columns are rows."""
        rows, columns = ids.shape
        if any(one.mask is not None for one in passes):
            parts = [
                np.ones((rows, max(0, one.keep - one.skip)), bool) if one.mask is None
                else _broad(host(one.mask)[:, one.skip : one.keep] != 0, rows)
                for one in passes
            ]  # fmt: skip
            valid = np.concatenate(parts, axis=1)
        else:
            valid = np.ones((rows, columns), bool)
        self.padding += int((~valid).sum())
        if rows > 1:
            writing = np.array([not one.first and one.width - one.skip == 1 for one in passes])[at]
            over = np.isin(ids, self._stops) & writing
            over = np.maximum.accumulate(over, axis=1) | state.finished[:, None]
            self.padding += int((valid & over).sum())
            valid &= ~over
            state.finished = over[:, -1] if columns else state.finished
            self._look_for_beams(passes, state)
            if state.broken:
                first = next((i for i, one in enumerate(passes) if one.broken), 0)
                lost = valid & (at >= first)
                self.reordered += int(lost.sum())
                valid &= ~lost
        return valid

    def _look_for_beams(self, passes: list[Pass], state: _State) -> None:
        for one in passes:
            if state.broken:
                return
            if one.keys is not None and bool((one.keys[0] != one.keys[1]).any()):
                state.broken = one.broken = True
                self._complain(
                    "rows of the batch changed places between two passes, as in beam search, which is not followed: what comes after is "
                    "dropped, and counted; use num_beams=1, with sampling if you like"
                )

    def _predicted(self, passes: list[Pass], ids: Array, valid: Array, widths: list[int], state: _State) -> dict[str, Array]:
        """As `Predictions.read`, but `logprob` is of the column's own token."""
        rows, columns = ids.shape
        following = np.full((rows, columns), -1, np.int64)
        following[:, :-1] = np.where(valid[:, 1:] & valid[:, :-1], ids[:, 1:], -1)
        found, last = self._predictions.read(passes, widths, following)
        if columns:
            own = np.full((rows, columns), np.nan)
            own[:, 1:] = found["logprob"][:, :-1]
            if state.last is not None:
                reached = valid[:, 0] & (state.count - valid.sum(axis=1) > 0)
                own[:, 0] = np.where(reached, gathered(state.last, ids[:, 0]), np.nan)
            found["logprob"] = own
            state.last = last
        return found

    def _batches(
        self, table: dict[str, Array], activations: dict[str, Array], present: dict[str, Array], hollow: Array
    ) -> Iterator[FrameBatch]:
        """Frame batches of bounded size; rows that the queue dropped are only counted."""
        manifest = self.stacked
        assert manifest is not None
        rows = len(hollow)
        size = sum(values.nbytes // len(values) for values in (*table.values(), *activations.values()))
        most = max(1, min(_MAX_BATCH_ROWS, _MAX_BATCH_BYTES // max(1, size)))
        cuts = np.flatnonzero(np.diff(hollow.astype(np.int8))) + 1
        for begin, end in zip((0, *cuts.tolist()), (*cuts.tolist(), rows), strict=True):
            if hollow[begin]:
                self.queue_dropped += end - begin
                self.next_seq += end - begin
                continue
            for low in range(begin, end, most):
                high = min(low + most, end)
                some, which = (activations, present) if high - low == rows else _between(activations, present, low, high)
                columns = {name: values[low:high] for name, values in table.items()}
                batch = FrameBatch(
                    manifest.run, manifest.boot, manifest.hash, self.next_seq, self.queue_dropped, columns, some, which
                )  # fmt: skip
                self.next_seq += high - low
                self._seen(batch)
                yield batch

    def _tell(self, tokens: Array) -> None:
        fresh = sorted(token for token in set(tokens.tolist()) - self._told if token >= 0)
        if fresh:
            self._told.update(fresh)
            self._news.extend(self._words(fresh))

    def _words(self, tokens: Sequence[int]) -> Iterator[Vocabulary]:
        for begin in range(0, len(tokens), MAX_TOKENS):
            some = tuple(tokens[begin : begin + MAX_TOKENS])
            yield Vocabulary(self._base.run, self._base.boot, time.time_ns(), some, tuple(self._text.of(token) for token in some))


def _generated(one: Pass) -> Array:
    """(columns,) whether tokens were fed after those given. A longer pass that goes on is given, unless all its logits
    were asked for, as speculative decoding does."""
    wide = max(0, one.keep - one.skip)
    if one.first:
        return np.arange(one.skip, one.skip + wide) >= one.given
    return np.full(wide, one.width == 1 or one.skip > 0 or (one.logits is not None and one.logits.shape[1] == one.width))


def _between(
    activations: dict[str, Array], present: dict[str, Array], low: int, high: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Of the rows from `low` to `high`."""
    some: dict[str, Array] = {}
    which: dict[str, Array] = {}
    for name, values in activations.items():
        index = present.get(name)
        if index is None:
            some[name] = values[low:high]
            continue
        left, right = np.searchsorted(index, (low, high))
        if right > left:
            some[name] = values[left:right]
            if right - left < high - low:
                which[name] = index[left:right] - np.int32(low)
    return some, which


def _broad(values: Array, rows: int) -> Array:
    return np.broadcast_to(values, (rows, values.shape[1]))

