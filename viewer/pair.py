"""Two texts of one prompt side by side: as the model wrote it, and with a feature changed; or one text that was asked for.

Both are read from the store, token by token as they are written, so a recording shows them as a live run does. Up to the first
token in which they differ both have the same text before them: what differs until then is the intervention alone.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from interlatent_live.analyzer.interventions import InterventionRow
from interlatent_live.analyzer.prompts import PromptRow
from interlatent_live.analyzer.records import Section
from interlatent_live.viewer.feed import Feed
from interlatent_live.viewer.text import number, plain
from interlatent_live.viewer.text_panel import SHOWN, Written, begun, nice, short, strongest, top

__all__ = ["PairView"]

_LOOK_S: Final = 0.12
_ALONE: Final = re.compile(r"p([0-9]{1,9})")


class PairView:
    """What one page shows side by side. Ask `message` on every step; it says what is new for the browser."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self._name: str | None = None
        self._arms: list[tuple[str, Written]] = []
        self._looked = 0.0
        self._slow = -1
        self._told: tuple[Any, ...] = ()
        self._acts: list[InterventionRow] = []
        self._measured: dict[int, float] = {}

    def message(self, name: str | None, chosen: int | None, *, whole: bool) -> dict[str, Any] | None:
        """What pairs.js draws; None: nothing new. `name`: None closes it. Raises StoreError for a moment that passes."""
        if name != self._name:
            self._name, self._arms, self._slow, self._looked, self._told = name, [], -1, 0.0, ()
        if name is None or self.feed.boot is None or self.feed.manifest is None:
            if whole or self._told != ("closed",):
                self._told = ("closed",)
                return {"name": None}
            return None
        boot = self.feed.boot.boot
        now = time.monotonic()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            self._read()
        feed = self.feed
        names = tuple(sorted((f, e.label or "") for f, e in feed.explanations.items()))
        told = (
            name, boot, chosen, feed.source_key, names, len(self._acts), tuple(sorted(self._measured.items())),
            tuple((arm, len(w), w.closed, w.unknown) for arm, w in self._arms),
        )  # fmt: skip
        if told == self._told and not whole:
            return None
        self._told = told
        return self._whole(chosen)

    def _read(self) -> None:
        feed, boot = self.feed, self.feed.boot
        assert boot is not None
        assert feed.manifest is not None
        reader, running = feed.reader, any(not written.closed for _, written in self._arms)
        if self._slow != feed.slow or len(self._arms) < 2:
            self._slow = feed.slow
            known = {written.row.prompt for _, written in self._arms}
            for row, arm in self._rows():
                if row.prompt not in known and (written := begun(reader, row)) is not None:
                    self._arms.append((arm, written))
                    running = True
        if not running:
            return
        sections = self._sections()
        for i, (arm, written) in enumerate(self._arms):
            if written.unknown and (again := begun(reader, written.row)) is not None:
                self._arms[i] = (arm, written := again)
            written.read(reader, sections, feed.manifest.metric_names)
            if boot.ended and not reader.batches(boot.boot, written.after_id, 1):
                written.closed = True
        self._learn()

    def _sections(self) -> dict[str, list[Section]]:
        feed, key = self.feed, self.feed.source_key
        assert feed.boot is not None
        return {key: [s for s in feed.reader.sections(feed.boot.boot) if f"{s.point}|{s.dictionary_hash}" == key]}

    def _rows(self) -> list[tuple[PromptRow, str]]:
        """The prompts of what is looked at, plain first, with the names of their arms."""
        boot, reader = self.feed.boot, self.feed.reader
        assert boot is not None
        assert self._name is not None
        pairs = reader.pairs(boot.boot)
        alone = _ALONE.fullmatch(self._name)
        if alone is not None:
            wanted = {int(alone[1]): next((p.arm for p in pairs if p.prompt == int(alone[1])), "")}
        else:
            wanted = {p.prompt: p.arm for p in pairs if p.pair == self._name}
        rows = [row for n in sorted(wanted)[:2] for row in reader.prompts(boot.boot, after=n - 1, limit=1) if row.prompt == n]
        return sorted(((row, wanted[row.prompt]) for row in rows), key=lambda found: found[1] == "steered")

    def _learn(self) -> None:
        """What was done to the steered one, and its measured effect by frame."""
        boot, reader = self.feed.boot, self.feed.reader
        steered = next((w for arm, w in self._arms if arm == "steered" and len(w)), None)
        if steered is None or boot is None:
            return
        first = steered.seq[0]
        acts = [a for a in reader.interventions(boot.boot) if a.first_seq is not None and a.first_seq <= first and not a.shadow]
        self._acts = [a for a in acts if a.next_seq is None or a.next_seq > first]
        found = {e.seq: e.value for a in self._acts for e in reader.effects(boot.boot, a.number) if e.kind == "kl" and e.value is not None}
        self._measured = {seq: value for seq, value in found.items() if first <= seq <= steered.seq[-1]}

    def _whole(self, chosen: int | None) -> dict[str, Any]:
        feed, shown = self.feed, self.feed.source_key
        arms, scale, used = [], 0.0, set() if chosen is None else {chosen}
        for arm, written in self._arms:
            known = written.strengths.get(shown, [])
            tokens = []
            for i in range(min(len(written), SHOWN)):
                strengths = known[i] if i < len(known) else None
                value, best = strongest(strengths, chosen), top(strengths)
                scale = max(scale, abs(value or 0.0))
                used.update(int(f) for f, _ in best)
                tokens.append([
                    written.seq[i], written.text[i], int(written.special[i]) + 2 * int(written.generated[i]), short(written.logprob[i]),
                    short(value), best, short(self._measured.get(written.seq[i])),
                ])  # fmt: skip
            row = written.row
            arms.append({
                "arm": arm, "prompt": row.prompt, "env": row.env, "tokens": tokens, "given": row.given, "closed": written.closed,
            })  # fmt: skip
        labels = {f: feed.explanations[f].label or "" for f in used if f in feed.explanations}
        differs = _differs([w.token for _, w in self._arms], [w.closed for _, w in self._arms])
        for act in self._acts:
            feature = act.edit.get("feature")
            if feature is not None and feature in feed.explanations:
                labels[int(feature)] = feed.explanations[feature].label or ""
        text = self._arms[0][1].row.text if self._arms else ""
        values = [v for v in self._measured.values() if math.isfinite(v)]
        return {
            "name": self._name, "text": plain(text, 120), "arms": arms, "differs": differs, "chosen": chosen, "letter": feed.label(0)[0],
            "scale": short(nice(scale)), "labels": {str(f): plain(label, 60) for f, label in labels.items() if label},
            "acts": [_said(act, feed.label(0)[0], labels) for act in self._acts],
            "kl": None if not values else {"mean": f"{number(sum(values) / len(values))}\u202fnat", "count": len(values)},
            "pair": _ALONE.fullmatch(self._name or "") is None,
        }  # fmt: skip


def _differs(tokens: Sequence[Sequence[int]], closed: Sequence[bool]) -> int | None:
    """The first token in which two texts differ; None where they do not, as far as they were written."""
    if len(tokens) != 2:
        return None
    for i, (a, b) in enumerate(zip(*tokens, strict=False)):
        if a != b:
            return i
    least = min(map(len, tokens))
    return least if all(closed) and len(tokens[0]) != len(tokens[1]) else None


def _said(act: InterventionRow, letter: str, labels: Mapping[int, str]) -> str:
    """An intervention in words."""
    edit = act.edit
    feature, operation, strength = edit.get("feature"), str(edit.get("operation")), edit.get("strength")
    what = f"{letter}{feature}" if feature is not None else f"a direction at {plain(str(edit.get('output')), 40)}"
    label = f" “{plain(labels[int(feature)], 60)}”" if feature is not None and labels.get(int(feature)) else ""
    by = number(float(strength)) if isinstance(strength, (int, float)) else "–"
    how = {"ablate": "taken away", "scale": f"× {by}", "clamp": f"held at {by}", "add": f"+ {by}"}.get(operation, operation)
    if operation == "scale" and strength == 0:
        how = "taken away"
    return f"{what}{label} {how}".replace("+ −", "− ")
