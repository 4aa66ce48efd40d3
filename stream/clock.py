"""Frame time: seconds of the agent's monotonic clock since the first frame of a recording."""

from __future__ import annotations

from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.wire import Attribution, Effects, Heartbeat, Intervention, Message, Picture, Scalars

__all__ = ["FrameClock", "stamp_ns"]


def stamp_ns(message: Message) -> int | None:
    """The monotonic clock of a message's first row, ns; None for what has none (manifests and signals)."""
    if isinstance(message, FrameBatch):
        return int(message.columns["monotonic_ns"][0])
    if isinstance(message, (Attribution, Heartbeat, Intervention, Picture)):
        return message.monotonic_ns
    return message.monotonic_ns[0] if isinstance(message, (Scalars, Effects)) else None


class FrameClock:
    """Seconds of frame time for each message of a recording, in its order.

    The first boot begins at 0. A later one, whose monotonic clock may be another host's, is placed by wall clock, but
    not before the last frame of those before it.
    """

    def __init__(self) -> None:
        self._zero_ns: dict[str, int] = {}
        self._wall_ns = 0
        self._last_ns = 0

    def begin(self, boot: str, monotonic_ns: int, wall_ns: int) -> None:
        """Place a boot by its first row; nothing happens where it is known."""
        if not self._zero_ns:
            self._wall_ns = wall_ns
        if boot not in self._zero_ns:
            begin_ns = 0 if not self._zero_ns else max(self._last_ns, wall_ns - self._wall_ns)
            self._zero_ns[boot] = monotonic_ns - begin_ns

    def end(self, boot: str, monotonic_ns: int) -> None:
        """Take note of the last row of a known boot so far."""
        self._last_ns = monotonic_ns - self._zero_ns[boot]

    def zero_ns(self, boot: str) -> int | None:
        """The boot's monotonic clock at 0 s; None before its first frame."""
        return self._zero_ns.get(boot)

    def seconds(self, message: Message, now: float) -> float:
        """Time of `message`'s first row; what has no clock of its own, or comes before all frames, is at `now`."""
        if isinstance(message, FrameBatch):
            monotonic = message.columns["monotonic_ns"]
            self.begin(message.boot, int(monotonic[0]), int(message.columns["wall_ns"][0]))
            self.end(message.boot, int(monotonic[-1]))
        stamp = stamp_ns(message)
        zero = None if stamp is None else self._zero_ns.get(getattr(message, "boot", ""))
        return now if stamp is None or zero is None else (stamp - zero) / 1e9

    def last(self, batch: FrameBatch) -> float:
        """Time of the last row of a batch that `seconds` has seen."""
        return (int(batch.columns["monotonic_ns"][-1]) - self._zero_ns[batch.boot]) / 1e9
