"""What a page looks at, as its address says it: reload it, reconnect, or send it to somebody, and the same view opens.

A frame is named by its boot and sequence number, which mean the same in every process that reads the database.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from interlatent_live.viewer.choice import Pair

__all__ = ["MAX_PINS", "SPEEDS", "TABS", "View", "pair_of", "pin_of", "pin_text", "reach_of"]

SPEEDS: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
TABS: Final = ("says", "goes", "features", "ask", "health")
MAX_PINS: Final = 6
_LONGEST: Final = 400
_PAIR: Final = re.compile(r"[0-9a-zA-Z]{1,64}")
_REACH: Final = re.compile(r"|[0-9]{1,8}(,(ablate|scale|clamp|add)(,-?[0-9]{1,8}(\.[0-9]{1,8})?)?)?")


def pin_text(pin: Pair) -> str:
    """A pin as text: '12', '~metric' or '12~metric'."""
    return ("" if pin.feature is None else str(pin.feature)) + ("" if pin.metric is None else f"~{pin.metric}")


def pin_of(text: str) -> Pair | None:
    """The pin that a text names; None for nonsense."""
    feature, tilde, metric = text[:_LONGEST].partition("~")
    if feature and not (feature.isascii() and feature.isdigit() and len(feature) < 9):
        return None
    if not feature and not metric:
        return None
    return Pair(int(feature) if feature else None, metric if tilde and metric else None)


def pair_of(text: str | None) -> str | None:
    """A pair's name, or 'p7' for prompt 7 alone; None for nonsense."""
    return text if text is not None and _PAIR.fullmatch(text) else None


def reach_of(text: str | None) -> str | None:
    """What a drawer's form may be filled in with; None for nonsense. It is only ever shown in the form."""
    return text if text is not None and _REACH.fullmatch(text) else None


@dataclass(frozen=True, slots=True)
class View:
    """One view. None: the default, which follows the newest."""

    boot: str | None = None
    env: int = 0
    source: str | None = None
    at: int | None = None
    """Frame at the cursor; None: live."""
    playing: bool = False
    speed: float = 1.0
    loop: tuple[int, int] | None = None
    """First and last frame that playback repeats."""
    pins: tuple[Pair, ...] = ()
    tab: str = TABS[0]
    shade: int | None = None
    """Feature that shades a language model's text; None: each token's strongest."""
    pair: str | None = None
    """Two texts side by side: what they have in common; 'p7' for prompt 7 alone."""
    reach: str | None = None
    """What the open drawer's form holds: feature, operation, strength, as in '4', '4,scale,0.5'; '' for an open drawer alone."""

    @classmethod
    def read(cls, arguments: Mapping[str, Sequence[bytes]]) -> View:
        """From the arguments of a request; what makes no sense is left at its default."""

        def text(name: str) -> str | None:
            values = arguments.get(name)
            return values[0].decode("utf-8", "replace")[:_LONGEST] if values else None

        def whole(value: str | None) -> int | None:
            return int(value) if value is not None and value.isascii() and value.isdigit() and len(value) < 16 else None

        speed = next((s for s in SPEEDS if f"{s:g}" == text("speed")), 1.0)
        first, _, last = (text("loop") or "").partition("-")
        loop = whole(first), whole(last)
        pins = [pin_of(p.decode("utf-8", "replace")) for p in arguments.get("pin", ())[:MAX_PINS]]
        tab = text("tab")
        return cls(
            boot=text("boot"), env=whole(text("env")) or 0, source=text("source"), at=whole(text("at")), playing=text("play") == "1",
            speed=speed, loop=(loop[0], loop[1]) if loop[0] is not None and loop[1] is not None and loop[0] < loop[1] else None,
            pins=tuple(dict.fromkeys(p for p in pins if p is not None)), tab=tab if tab in TABS else TABS[0],
            shade=whole(text("shade")), pair=pair_of(text("pair")), reach=reach_of(text("reach")),
        )  # fmt: skip

    def query(self) -> list[tuple[str, str]]:
        """Arguments that open this view; defaults are left out."""
        found: list[tuple[str, str]] = []
        if self.boot is not None:
            found.append(("boot", self.boot))
        if self.at is not None:
            found.append(("at", str(self.at)))
        if self.playing:
            found.append(("play", "1"))
        if self.speed != 1.0:
            found.append(("speed", f"{self.speed:g}"))
        if self.loop is not None:
            found.append(("loop", f"{self.loop[0]}-{self.loop[1]}"))
        if self.env:
            found.append(("env", str(self.env)))
        if self.source is not None:
            found.append(("source", self.source))
        found.extend(("pin", pin_text(p)) for p in self.pins)
        if self.tab != TABS[0]:
            found.append(("tab", self.tab))
        if self.shade is not None:
            found.append(("shade", str(self.shade)))
        if self.pair is not None:
            found.append(("pair", self.pair))
        if self.reach is not None:
            found.append(("reach", self.reach))
        return found
