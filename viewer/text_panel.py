"""A language model's text at the cursor: its tokens as they were read, how strong features are at each, and what was predicted.

1. The cursor's frame says which prompt is shown: a prompt is one episode of one environment, the row of its batch.
2. Its tokens are read from the batches that hold them, a bounded number at a time, and kept until another prompt is shown; what is
   new goes to the browser as an increment. A prompt of more than `SHOWN` tokens is shown in part, about the cursor.
3. A token is shaded by the feature that was chosen, on the scale of that feature's maximum in the run, else by its strongest.
4. A row of the strip is a tap point with its features: the strongest at each token, whatever feature that is, or the chosen one.

Text is told as it is; the browser writes it as text, never as markup.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from interlatent_live.analyzer.prompts import PairRow, PromptRow
from interlatent_live.analyzer.queries import Reader
from interlatent_live.analyzer.records import BatchRow, CodesRow, Section
from interlatent_live.viewer.feed import Feed
from interlatent_live.viewer.text import number, plain
from interlatent_live.viewer.window import Piece

__all__ = ["BATCHES", "LISTED", "SHOWN", "Texts", "Written", "begun", "listed", "nice", "short", "strongest", "top"]

SHOWN: Final = 4_096
"""Tokens of one prompt on the page at most."""
LISTED: Final = 500
"""Prompts in the list: the newest."""
BATCHES: Final = 256
"""Batches read at a time."""
TOP: Final = 4
"""Features told of each token."""
POINTS: Final = 48
"""Rows of the strip at most."""
_COLUMNS: Final = ("prompt", "position", "token", "special", "generated")
_DIGITS: Final = 4
_EXCERPT: Final = 90
Strengths = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""(k,) features that are active at a token, and (k,) their values."""
_NOTHING: Final[Strengths] = (np.zeros(0, np.int64), np.zeros(0, np.float32))


@dataclass(slots=True)
class Written:
    """The tokens of one prompt, as far as they were read from the store; lists are by token, in the order of the text."""

    boot: str
    row: PromptRow
    after_id: int
    """Batches up to this one were read."""
    closed: bool = False
    """Whether a later prompt has begun in its environment: nothing more comes."""
    seq: list[int] = field(default_factory=list)
    token: list[int] = field(default_factory=list)
    special: list[bool] = field(default_factory=list)
    generated: list[bool] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    """nat; NaN where unknown."""
    entropy: list[float] = field(default_factory=list)
    """nat, of the prediction made from it; NaN where unknown."""
    following: list[list[tuple[int, float]]] = field(default_factory=list)
    """The most likely next tokens and their probabilities."""
    strengths: dict[str, list[Strengths | None]] = field(default_factory=dict)
    """By tap point and dictionary: what is active at each token; None where that is not known."""
    text: list[str] = field(default_factory=list)
    unknown: bool = False
    """Whether a token's text was not told yet."""
    _decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def __len__(self) -> int:
        return len(self.seq)

    def read(self, reader: Reader, sections: Mapping[str, Sequence[Section]], metrics: Sequence[str]) -> None:
        """Take the next batches."""
        if self.closed:
            return
        batches = reader.batches(self.boot, self.after_id, BATCHES)
        if not batches:
            return
        found: dict[str, dict[int, CodesRow]] = {}
        for key, several in sections.items():
            codes = found.setdefault(key, {})
            for section in several:
                grows = section is several[-1]  # its end was read a while ago
                if (grows or section.next_seq >= batches[0].first_seq) and section.first_seq < batches[-1].first_seq + batches[-1].rows:
                    codes.update((c.batch_id, c) for c in reader.codes(section.id, batches[0].id, batches[-1].id))
        mine = [b.columns["token"][b.columns["prompt"] == self.row.prompt] for b in batches if all(n in b.columns for n in _COLUMNS)]
        words = reader.words(self.boot, np.concatenate(mine).tolist() if mine else [])  # all is read before anything is taken
        before = len(self)
        for batch in batches:
            self.after_id = batch.id
            if not self._take(batch, {key: codes.get(batch.id) for key, codes in found.items()}, metrics):
                self.closed = True
                break
        for token in self.token[before:]:
            self.unknown |= token not in words
            self.text.append(self._decoder.decode(words[token]) if token in words else f"⟨{token}⟩")

    def _take(self, batch: BatchRow, coded: Mapping[str, CodesRow | None], metrics: Sequence[str]) -> bool:
        """Take this prompt's tokens; whether more may come."""
        columns = batch.columns
        if not all(name in columns for name in _COLUMNS):
            return True
        prompt, mine = columns["prompt"], np.flatnonzero(columns["prompt"] == self.row.prompt)
        table = columns.get("metrics")

        def metric(name: str) -> list[float]:
            known = table is not None and name in metrics and table.shape[1] == len(metrics)
            return table[mine, metrics.index(name)].tolist() if table is not None and known else [math.nan] * len(mine)

        self.seq += (batch.first_seq + mine).tolist()
        self.token += columns["token"][mine].tolist()
        self.special += [bool(v) for v in columns["special"][mine]]
        self.generated += [bool(v) for v in columns["generated"][mine]]
        self.logprob += metric("logprob")
        self.entropy += metric("next_entropy")
        tokens, probs = columns.get("next_tokens"), columns.get("next_probs")
        if tokens is None or probs is None:
            self.following += [[] for _ in mine]
        else:
            for t, p in zip(tokens[mine].tolist(), probs[mine].tolist(), strict=True):
                self.following.append([(k, v) for k, v in zip(t, p, strict=True) if k >= 0 and math.isfinite(v)])
        for key, row in coded.items():
            known_before = self.strengths.setdefault(key, [])
            known_before += [None] * (len(self.seq) - len(mine) - len(known_before))
            known_before += _strengths(row, mine)
        return not bool((prompt[columns["env"] == self.row.env] > self.row.prompt).any())

    def at(self, seq: int) -> int:
        """Which token the frame `seq` is, or the last before it; -1 for none."""
        return int(np.searchsorted(np.asarray(self.seq), seq, side="right")) - 1


def _strengths(row: CodesRow | None, mine: npt.NDArray[np.int64]) -> list[Strengths | None]:
    if row is None:
        return [None] * len(mine)
    codes, places = row.codes, np.searchsorted(row.rows, mine)
    found: list[Strengths | None] = []
    for place, at in zip(places.tolist(), mine.tolist(), strict=True):
        if place >= len(row.rows) or int(row.rows[place]) != at:
            found.append(None)
            continue
        first, last = int(codes.indptr[place]), int(codes.indptr[place + 1])
        found.append((codes.indices[first:last].astype(np.int64), codes.values[first:last]))
    return found


class Texts:
    """What one page shows of the text. Ask `message` on every step; it says what is new for the browser."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.written: Written | None = None
        self._prompts: list[PromptRow] = []
        self._pairs: dict[int, PairRow] = {}
        self._at: dict[tuple[int, int], PromptRow] = {}
        self._lengths: dict[int, int] = {}
        self._sections: dict[str, list[Section]] = {}
        self._maxima: npt.NDArray[Any] = np.zeros(0)
        self._slow = -1
        self._boot = ""
        self._told: tuple[Any, ...] = ()
        self._count = 0
        self._scales: dict[str, float] = {}

    def message(self, moment: tuple[Piece, int] | None, chosen: int | None, *, whole: bool) -> dict[str, Any] | None:
        """What tokens.js adds to what it shows; None: nothing, or nothing new. `whole`: all of it, for a browser that begins.

        `moment`: the cursor's frame. `chosen`: the feature that shades. Raises StoreError for a moment that passes.
        """
        feed = self.feed
        if feed.boot is None or feed.manifest is None or moment is None:
            return None
        self._look()
        if not self._prompts:
            return None
        piece, frame = moment
        row = self._at.get((feed.env, int(piece.episode[frame])))
        if row is None:
            return None
        if self.written is None or (self.written.boot, self.written.row.prompt) != (feed.boot.boot, row.prompt):
            self._open(row)
        written = self.written
        if written is None:
            return None
        written.read(feed.reader, self._sections, feed.manifest.metric_names)
        return self._news(written, chosen, int(piece.seq[frame]), whole)

    def first_seq(self, prompt: int) -> tuple[int, int] | None:
        """(environment, first frame) of a prompt; None where it has none."""
        boot = self.feed.boot
        row = next((p for p in self._prompts if p.prompt == prompt), None)
        if boot is None or row is None:
            return None
        tokens = self.feed.reader.written(boot.boot, prompt, 1)
        return (row.env, tokens[0].seq) if tokens else None

    def prompts(self, pending: int = 64) -> list[dict[str, Any]]:
        """The list of prompts, newest first. Lengths of those that are finished are counted once, at most `pending` at a time."""
        boot = self.feed.boot
        newest = self._prompts[-LISTED:]
        if boot is not None:
            last = {p.env: p.prompt for p in self._prompts}
            for row in newest[::-1]:
                running = row.prompt == last[row.env] and not boot.ended
                if row.prompt not in self._lengths and not running and pending:
                    self._lengths[row.prompt] = len(self.feed.reader.written(boot.boot, row.prompt))
                    pending -= 1
        return listed(newest[::-1], self._lengths, self._pairs)

    def _look(self) -> None:
        """Read what changes slowly, as often as the feed does."""
        feed = self.feed
        assert feed.boot is not None
        if feed.boot.boot != self._boot:
            self._boot, self._slow, self.written = feed.boot.boot, -1, None
            self._prompts, self._pairs, self._at, self._lengths = [], {}, {}, {}
        if self._slow == feed.slow:
            return
        self._slow = feed.slow
        while new := feed.reader.prompts(self._boot, after=self._prompts[-1].prompt if self._prompts else -1):
            self._prompts += new
            self._at |= {(p.env, p.episode): p for p in new}
        if not self._prompts:
            return
        self._pairs = {p.prompt: p for p in feed.reader.pairs(self._boot)}
        self._sections = {}
        for section in feed.reader.sections(self._boot):
            self._sections.setdefault(f"{section.point}|{section.dictionary_hash}", []).append(section)
        activity = None if feed.section is None else feed.reader.activity(feed.section.id)
        if activity is not None:
            self._maxima = np.abs(activity.maximum)
        if self.written is not None and self.written.unknown:
            self._open(self.written.row)

    def _open(self, row: PromptRow) -> None:
        self.written = begun(self.feed.reader, row)
        self._scales = {}

    def _news(self, written: Written, chosen: int | None, seq: int, whole: bool) -> dict[str, Any] | None:
        feed, shown = self.feed, self.feed.source_key
        at = max(0, written.at(seq))
        first = max(0, (at - SHOWN // 2) // (SHOWN // 2)) * (SHOWN // 2) if len(written) > SHOWN else 0
        last = min(len(written), first + SHOWN)
        rows = self._rows(shown)
        names = tuple(sorted((f, e.label or "") for f, e in feed.explanations.items()))
        key = (written.boot, written.row.prompt, id(written), chosen, shown, first, tuple(rows), names)
        fresh = whole or key != self._told
        if not fresh and last <= self._count:
            return None
        begin = first if fresh else self._count
        self._told, self._count = key, last
        values = {name: [strongest(s, chosen if name == shown else None) for s in self._of(written, name, begin, last)] for name in rows}
        mine = values.get(shown) or [None] * (last - begin)
        for name, several in values.items():
            self._scales[name] = max([self._scales.get(name, 0.0), *(abs(v) for v in several if v is not None)])
        scale = nice(max([self._scales.get(shown, 0.0), *(abs(v) for v in mine if v is not None)]))
        if chosen is not None and chosen < len(self._maxima) and self._maxima[chosen] > 0:
            scale = max(float(self._maxima[chosen]), self._scales.get(shown, 0.0))
        used: set[int] = set()
        tokens = []
        words = self._following(written, begin, last)
        for i in range(begin, last):
            known = written.strengths.get(shown, [])
            strengths = known[i] if i < len(known) else None
            best, after = top(strengths), [[words.get(t, f"⟨{t}⟩"), short(p)] for t, p in written.following[i]]
            used.update(int(f) for f, _ in best)
            tokens.append([
                written.seq[i], written.text[i], int(written.special[i]) + 2 * int(written.generated[i]), short(written.logprob[i]),
                short(written.entropy[i]), short(mine[i - begin]), best, after,
                written.token[i], strengths is not None,
            ])  # fmt: skip
        said = {f: feed.explanations[f] for f in (used | ({chosen} if chosen is not None else set())) if f in feed.explanations}
        return {
            "key": [written.boot, written.row.prompt, chosen, shown, first], "fresh": fresh, "begin": begin, "before": first,
            "tokens": tokens,
            "prompt": _prompt(written.row, len(written)), "chosen": chosen, "letter": feed.label(0)[0], "scale": short(scale),
            "labels": {str(f): plain(e.label or "", 60) for f, e in said.items()},
            "points": [
                {"key": name, "name": feed.sources.get(name, name.split("|")[0]), "point": name.split("|")[0], "shown": name == shown,
                 "scale": short(self._scales.get(name, 0.0))}
                for name in rows
            ],
            "strips": [[short(v) for v in values[name]] for name in rows],
            "more": max(0, len(self._sections) - len(rows)),
        }  # fmt: skip

    def _rows(self, shown: str) -> list[str]:
        """Rows of the strip: tap points in the order in which the manifest names them."""
        manifest = self.feed.manifest
        places = {p.name: i for i, p in enumerate(manifest.tap_points)} if manifest else {}
        order = sorted(self._sections, key=lambda k: (places.get(k.split("|")[0], len(places)), k))
        if len(order) > POINTS and shown in order:
            at = max(0, min(order.index(shown) - POINTS // 2, len(order) - POINTS))
            return order[at : at + POINTS]
        return order[:POINTS]

    def _of(self, written: Written, key: str, begin: int, last: int) -> list[Strengths | None]:
        known = written.strengths.get(key, [])[begin:last]
        return known + [None] * (last - begin - len(known))

    def _following(self, written: Written, begin: int, last: int) -> dict[int, str]:
        """Texts of the tokens that were predicted."""
        wanted = {t for i in range(begin, last) for t, _ in written.following[i]}
        found = self.feed.reader.words(written.boot, sorted(wanted))
        return {token: text.decode("utf-8", "replace") for token, text in found.items()}


def begun(reader: Reader, row: PromptRow) -> Written | None:
    """A prompt of which nothing was read yet; None where the store has no token of it."""
    tokens = reader.written(row.boot, row.prompt, 1)
    batch = reader.batch_at(row.boot, tokens[0].seq) if tokens else None
    return None if batch is None else Written(row.boot, row, batch.id - 1)


def listed(prompts: Sequence[PromptRow], lengths: Mapping[int, int], pairs: Mapping[int, PairRow] | None = None) -> list[dict[str, Any]]:
    """Prompts as the list shows them. `lengths`: tokens of those that are finished. `pairs`: those written with and without an
    intervention."""
    found = []
    for row in prompts:
        other = (pairs or {}).get(row.prompt)
        found.append(_prompt(row, lengths.get(row.prompt)) | ({} if other is None or not other.pair else {"pair": other.pair}))
    return found


def _prompt(row: PromptRow, length: int | None) -> dict[str, Any]:
    written = "" if length is None else number(length - row.given) if length >= row.given else "0"
    return {
        "prompt": row.prompt, "env": row.env, "text": plain(row.text, _EXCERPT), "given": number(row.given), "written": written,
        "labels": [[plain(name, 24), plain(value, 32)] for name, value in sorted(row.labels.items())],
    }  # fmt: skip


def strongest(strengths: Strengths | None, feature: int | None) -> float | None:
    """Value of `feature` at a token, 0 where it is silent; None for no feature: of the strongest. None where nothing is known."""
    if strengths is None:
        return None
    features, values = strengths
    if feature is not None:
        at = np.flatnonzero(features == feature)
        return float(values[at[0]]) if len(at) else 0.0
    return float(values[int(np.argmax(np.abs(values)))]) if len(values) else 0.0


def top(strengths: Strengths | None) -> list[list[float]]:
    """The strongest features at a token, with their values."""
    features, values = strengths if strengths is not None else _NOTHING
    order = np.argsort(-np.abs(values), kind="stable")[:TOP]
    return [[int(features[k]), short(float(values[k])) or 0.0] for k in order.tolist()]


def short(value: float | None) -> float | None:
    """A number with as many digits as are looked at; None for what is not known."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{_DIGITS}g}")


def nice(value: float) -> float:
    """The next round number at or above a value: a scale then grows in few steps."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if m * power >= value * (1 - 1e-9))
