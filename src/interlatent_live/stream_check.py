"""Listening to a stream for a few seconds, to say how it fares: rate, age, losses, and what its tap has to complain of."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from .stream.frames import FrameBatch
from .stream.ledger import SubscriberLedger
from .stream.manifest import Manifest
from .stream.subscriber import Subscriber
from .stream.wire import Bye, Heartbeat

__all__ = ["Heard", "listen"]

Row = tuple[str, Literal["PASS", "WARN", "FAIL"], str, str]

LISTEN_S: Final = 3.0
"""Heartbeats come once a second."""
_OLD_MS: Final = 1_000.0
_SLOW_US: Final = 1_000.0
_COMPLAINTS: Final = {
    "silent_points": "tap point(s) kept nothing: see the agent's log for likely causes",
    "hook_failures": "activation(s) could not be kept: see the agent's log",
    "metric_failures": "metric(s) failed: see the agent's log",
    "step_failures": "step(s) were not kept: see the agent's log",
    "stamp_failures": "stamp(s) were no nanoseconds: give tap.step(stamp_ns=…) whole ones",
    "stamps_back": "stamp(s) went back: give tap.step(stamp_ns=…) a monotonic clock",
    "scalars_dropped": "row(s) of tap.log were dropped: log less often",
}


@dataclass
class Heard:
    """What was heard of the first run that spoke."""

    endpoint: str
    manifest: Manifest | None = None
    accounts: Heartbeat | None = None
    ledger: SubscriberLedger = field(default_factory=SubscriberLedger)
    ages_ms: list[float] = field(default_factory=list)
    refused: int = 0
    runs: set[str] = field(default_factory=set)
    span_ns: int = 0
    """Frame time between the first and the last batch."""

    def rows(self, *, expected: bool) -> list[Row]:
        """What to tell; `expected`: whether silence is a failure."""
        if not self.runs:
            foreign = f"; {self.refused} message(s) were not of ours" if self.refused else ""
            return [(
                "stream",
                "FAIL" if expected else "WARN",
                f"nothing was heard on {self.endpoint} in {LISTEN_S:g} s{foreign}",
                "is the agent running, its tap open, and the address right? From another machine it must bind tcp://*:5570",
            )]  # fmt: skip
        return [self._run(), self._ages(), self._losses(), *self._tap()]

    def _run(self) -> Row:
        others = f"; also {', '.join(sorted(self.runs)[1:])}" if len(self.runs) > 1 else ""
        if self.ledger.received:
            rate = f", {self.ledger.received / (self.span_ns / 1e9):.0f} frames/s" if self.span_ns else ""
            return ("stream", "PASS", f"run {min(self.runs)!r}: {self.ledger.received} frames heard{rate}{others}", "")
        if isinstance(self.accounts, Bye):
            return ("stream", "PASS", f"run {min(self.runs)!r} said farewell after {self.accounts.produced} frames{others}", "")
        return ("stream", "WARN", f"run {min(self.runs)!r} is there, but no frame came in {LISTEN_S:g} s{others}",
                "paused, or nobody calls tap.step (il.watch does it for gymnasium)")  # fmt: skip

    def _ages(self) -> Row:
        if not self.ages_ms:
            return ("stream age", "PASS", "unknown without frames", "")
        median = sorted(self.ages_ms)[len(self.ages_ms) // 2]
        same = self.manifest is not None and self.manifest.host_boot not in ("", None) and self.manifest.host_boot == _host_boot()
        clock = "one clock" if same else "wall clocks of two machines"
        found = f"frames are {median:.1f} ms old on arrival (median, by {clock})"
        if not same and median < -5:
            return ("stream age", "WARN", found, "the clocks of the two machines differ: synchronise them (chrony)")
        if median > _OLD_MS:
            return ("stream age", "WARN", found, "the network or this machine is too slow, or the clocks differ (chrony)")
        return ("stream age", "PASS", found, "")

    def _losses(self) -> Row:
        ledger = self.ledger
        dropped = 0 if self.accounts is None else self.accounts.queue_dropped
        failed = 0 if self.accounts is None else self.accounts.record_failed
        found = (
            f"received {ledger.received}, lost on the wire {ledger.wire_lost}, before we came {ledger.not_subscribed}, dropped by the "
            f"agent's queue {dropped}, recording failed for {failed}, messages refused {self.refused}"
        )
        if failed:
            return ("stream ledger", "WARN", found, "the agent's disk is full or its recording broke: see its log")
        if ledger.wire_lost:
            return ("stream ledger", "WARN", found, "network or machine too slow: fewer points, or analyse where the agent runs")
        if dropped:
            return ("stream ledger", "WARN", found, "its sender cannot keep up: fewer or smaller tap points, or a larger queue_bytes")
        if self.refused:
            return ("stream ledger", "WARN", found, "something else speaks there, or one side is older: upgrade it")
        return ("stream ledger", "PASS", found, "")

    def _tap(self) -> list[Row]:
        if self.accounts is None:
            return []
        status = self.accounts.status
        rows: list[Row] = []
        for name, remedy in _COMPLAINTS.items():
            if status.get(name, 0) > 0:
                told, _, what = remedy.partition(": ")
                rows.append((f"stream {name.replace('_', ' ')}", "WARN", f"{status[name]:.0f} {told}", what))
        median, p99 = (status.get(f"overhead_us_{name}", math.nan) for name in ("median", "p99"))
        if median == median:
            state: Literal["PASS", "WARN"] = "WARN" if median > _SLOW_US else "PASS"
            remedy = "fewer tap points, or no functions among the metrics" if state == "WARN" else ""
            rows.append(("stream overhead", state, f"the tap costs the agent {median:.1f} µs a step (p99 {p99:.1f})", remedy))
        return rows


def listen(endpoint: str, seconds: float = LISTEN_S) -> Heard:
    """Listen for `seconds`, or until the farewell."""
    heard = Heard(endpoint)
    mine = _host_boot()
    end = time.monotonic() + seconds
    first_ns: int | None = None
    boot = ""
    with Subscriber(endpoint) as subscriber:
        while (left := end - time.monotonic()) > 0:
            message = subscriber.receive(left)
            if message is None:
                break
            heard.runs.add(message.run)
            if message.run != min(heard.runs):
                continue
            if isinstance(message, Manifest):
                heard.manifest = message
            elif isinstance(message, FrameBatch):
                if message.boot != boot:
                    boot, heard.ledger, first_ns = message.boot, SubscriberLedger(), None
                heard.ledger.batch(message)
                clocks = message.columns["monotonic_ns"]
                first_ns = int(clocks[0]) if first_ns is None else first_ns
                heard.span_ns = max(0, int(clocks[-1]) - first_ns)
                same = heard.manifest is not None and heard.manifest.host_boot != "" and heard.manifest.host_boot == mine
                at = int(clocks[-1] if same else message.columns["wall_ns"][-1])
                heard.ages_ms.append(((time.monotonic_ns() if same else time.time_ns()) - at) / 1e6)
            elif isinstance(message, Heartbeat):
                heard.accounts = message
                if message.boot == boot:
                    heard.ledger.bound(message)
                if isinstance(message, Bye):
                    break
        heard.refused = subscriber.refused.total()
    return heard


def _host_boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
