"""The one thread of the agent's side that records and sends, so that the agent never does.

It wakes on a timer, never by the agent (waking a sleeping thread costs the waker 40-60 µs). Each turn:

1. answer new subscriptions with the manifest,
2. drain what the agent sealed; for each batch: record it, then send it, so that a slow network loses nothing,
3. at most 20 times a second of frame time: the last row as `signals`,
4. at most one picture, encoded here,
5. once a second: manifest and heartbeat, and the recording is flushed.

Clocks: the timer, heartbeats and flushes go by this host's monotonic clock, signals by the frames'.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final, TypeVar

from interlatent_live.stream.errors import InterlatentError, RecordingError, WireError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.publisher import Publisher
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.wire import Bye, Heartbeat, Message, Picture, Signals, topic

__all__ = ["Sender"]

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)
_PULSE_S: Final = 1.0
_FAREWELLS: Final = 3
_FAREWELL_S: Final = 0.1
_MAX_COMPLAINTS: Final = 100
_SIGNALS_NS: Final = 50_000_000
_SIGNAL_DIGITS: Final = 6
_PICTURES: Final = 4
_ALIVE: weakref.WeakSet[Sender] = weakref.WeakSet()


class Sender:
    """Drains, records and sends on its own thread. Every method may be called from any thread; after a fork the child's
    is inert.
    """

    def __init__(
        self,
        *,
        drain: Callable[[], Iterable[FrameBatch]],
        manifest: Callable[[], Manifest | None],
        status: Callable[[], Mapping[str, float]],
        accounts: Callable[[], tuple[int, int]],
        run: str,
        boot: str,
        publisher: Publisher | None,
        recorder: Recorder | None,
        scalars: Callable[[], Iterable[Message]] = tuple,
        period_s: float = 0.010,
    ) -> None:
        """Take over `publisher` and `recorder`, which are closed with this sender; all four callables run on its
        thread.

        `drain()`: the batches sealed since the last call. `accounts()`: (next sequence number to be drained, frames
        that the queue dropped
        in all), taken together. `scalars()`: what was logged and attributed since the last call. `period_s`: seconds between turns.
        """
        self._drain, self._manifest, self._status, self._accounts = drain, manifest, status, accounts
        self._run, self._boot, self._period_s = run, boot, period_s
        self._scalars = scalars
        self._publisher, self._recorder = publisher, recorder
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._subscribed = threading.Event()
        self._finished = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pictures: deque[Callable[[], Picture | None]] = deque()
        self._announced = ""
        self._pictures_pushed_out = self._pictures_failed = 0
        self._pulse_due = 0.0
        self._signals_ns: int | None = None
        self._recorded = 0
        self._recording_failed = False
        self._complaints: set[str] = set()
        self.record_failed = 0
        """Frames that should have been recorded and were not."""
        self.failures = 0
        """Errors of the callables, and messages that could not be encoded."""
        self.subscribers = 0
        """Subscriptions that receive this run's frames."""
        _ALIVE.add(self)

    @property
    def recorded(self) -> int:
        """Frames written to the recording, those of the open chunk included: they move to `record_failed` if it cannot
        be written.
        """
        recorder = self._recorder
        return self._recorded if recorder is None else recorder.frames + recorder.pending_frames

    @property
    def pictures_dropped(self) -> int:
        """Pictures that were pushed out by newer ones, or could not be made."""
        return self._pictures_pushed_out + self._pictures_failed

    def start(self) -> None:
        """Start the thread. Twice is once."""
        with self._starting:
            if self._thread is None and not self._stop.is_set() and self._mine():
                self._thread = threading.Thread(target=self._serve, name=f"interlatent-sender-{self._run}", daemon=True)
                self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Drain, record and send what is left and the farewell, close recorder and publisher. Twice is once."""
        if not self._mine():
            return
        with self._starting:
            self._stop.set()
            if self._thread is None and not self._finished.is_set():
                self._finish()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                _LOG.warning(
                    "run %s: the sender did not finish within %g s; the recording may lack its last second",
                    self._run, timeout_s,
                )

    def offer_picture(self, job: Callable[[], Picture | None]) -> None:
        """Queue `job`, which makes a picture on the sender's thread. Never waits: of more than 4 waiting, the oldest is
        dropped.
        """
        if not self._mine() or self._stop.is_set():
            return
        self._pictures.append(job)
        while len(self._pictures) > _PICTURES:
            with contextlib.suppress(IndexError):  # the sender was faster
                self._pictures.popleft()
                self._pictures_pushed_out += 1

    def wait_subscribed(self, timeout_s: float) -> bool:
        """Wait until someone receives this run's frames; whether that was so within `timeout_s` seconds."""
        return self._publisher is not None and self._mine() and self._subscribed.wait(timeout_s)

    def _mine(self) -> bool:
        return self._pid == os.getpid()

    def _serve(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(self._period_s)
            self._turn()
        self._finish()

    def _turn(self) -> None:
        for part in (self._attend, self._send_frames, self._send_scalars, self._send_picture, self._pulse):
            self._guard(part)

    def _finish(self) -> None:
        """The last turn, and the farewell: into the recording first, then out with what the recording really holds."""
        self._turn()
        for part in (self._record_farewell, self._send_farewell):
            self._guard(part)
        if self._publisher is not None:
            self._publisher.close()
        self._finished.set()

    def _guard(self, part: Callable[[], _T]) -> _T | None:
        """Call a part of the service loop: whatever the agent's callables do, the next frames are still sent."""
        try:
            return part()
        except Exception as error:  # noqa: BLE001 - this is the service loop: count, say it, go on
            self._complain(error)
            return None

    def _complain(self, error: Exception) -> None:
        """Count, and report each kind once."""
        self.failures += 1
        kind = f"{type(error).__name__}: {error}" if isinstance(error, InterlatentError) else type(error).__name__
        if kind not in self._complaints and len(self._complaints) < _MAX_COMPLAINTS:
            self._complaints.add(kind)
            _LOG.warning("run %s: the sender goes on after %r", self._run, error, exc_info=error)

    def _attend(self) -> None:
        if self._publisher is None:
            return
        new = self._publisher.poll()
        self.subscribers = self._publisher.subscribed(topic(self._run, "frames"))
        if self.subscribers:
            self._subscribed.set()
        else:
            self._subscribed.clear()
        if new:
            self._announce(again=True)

    def _send_frames(self) -> None:
        for batch in self._drain():
            if batch.manifest_hash != self._announced:
                self._announce(again=False)
            self._deliver(batch)
            self._guard(partial(self._signal, batch))

    def _send_scalars(self) -> None:
        for message in self._scalars():
            self._deliver(message)

    def _send_picture(self) -> None:
        if not self._pictures:
            return
        failures = self.failures
        picture = self._guard(self._pictures.popleft())
        self._pictures_failed += self.failures - failures
        if picture is not None:
            self._deliver(picture)

    def _pulse(self) -> None:
        now = time.monotonic()
        if now < self._pulse_due:
            return
        self._pulse_due = now + _PULSE_S
        self._announce(again=True)
        self._deliver(self._accounted(Heartbeat))
        if self._recorder is not None:
            try:
                self._recorder.flush()
            except RecordingError as error:
                self._stop_recording(error)

    def _record_farewell(self) -> None:
        self._announce(again=False)
        self._record(self._accounted(Bye))
        if self._recorder is not None:
            try:
                self._recorder.close()
            except RecordingError as error:
                self._stop_recording(error)

    def _send_farewell(self) -> None:
        if self._publisher is None:
            return
        bye = self._accounted(Bye)
        frames = topic(self._run, "frames")
        for _ in range(_FAREWELLS):  # a full queue swallows it, untold; whoever got it leaves, or ignores the next
            self._publisher.send(bye)
            again = time.monotonic() + _FAREWELL_S
            while time.monotonic() < again:
                self._publisher.poll()
                if not self._publisher.subscribed(frames):
                    return
                time.sleep(0.005)

    def _announce(self, *, again: bool) -> None:
        manifest = self._manifest()
        if manifest is not None and (again or manifest.hash != self._announced):
            self._announced = manifest.hash
            self._deliver(manifest)

    def _accounted(self, kind: type[Heartbeat]) -> Heartbeat:
        produced, queue_dropped = self._accounts()
        return kind(
            run=self._run,
            boot=self._boot,
            monotonic_ns=time.monotonic_ns(),
            wall_ns=time.time_ns(),
            produced=produced,
            queue_dropped=queue_dropped,
            recorded=self.recorded,
            record_failed=self.record_failed,
            status=self._guard(self._status) or {},
        )

    def _deliver(self, message: Message) -> None:
        self._record(message)
        if self._publisher is not None:
            try:
                self._publisher.send(message)
            except WireError as error:
                self._complain(error)

    def _record(self, message: Message) -> None:
        if self._recorder is None:
            if self._recording_failed and isinstance(message, FrameBatch):
                self.record_failed += message.rows
            return
        try:
            self._recorder.write(message)
        except RecordingError as error:
            self._stop_recording(error)
        except WireError as error:
            self._complain(error)
            if isinstance(message, FrameBatch):
                self.record_failed += message.rows

    def _stop_recording(self, error: RecordingError) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            self._recorded, self._recording_failed = recorder.frames, True
            self.record_failed += recorder.pending_frames
            recorder.abandon()
            _LOG.warning("%s; sending goes on", error)

    def _signal(self, batch: FrameBatch) -> None:
        monotonic_ns = int(batch.columns["monotonic_ns"][-1])
        if self._signals_ns is not None and monotonic_ns - self._signals_ns < _SIGNALS_NS:
            return
        rows = (batch.columns["env"] == 0).nonzero()[0]
        manifest = self._manifest()
        if len(rows) == 0 or manifest is None or manifest.hash != batch.manifest_hash:
            return
        row = int(rows[-1])
        self._signals_ns = monotonic_ns
        named = (name for name in ("step", "episode", "reward") if name in batch.columns)
        values = {name: float(batch.columns[name][row]) for name in named}
        if "metrics" in batch.columns:
            values |= dict(zip(manifest.metric_names, batch.columns["metrics"][row].tolist(), strict=False))
        self._deliver(Signals(self._run, int(batch.columns["wall_ns"][row]), {k: _short(v) for k, v in values.items()}))


def _short(value: float) -> float:
    """Six digits: signals are for plots, and their recording should stay small beside the frames'."""
    return float(f"{value:.{_SIGNAL_DIGITS}g}") if math.isfinite(value) else value


@atexit.register
def _close_all() -> None:
    for sender in list(_ALIVE):
        sender.close(timeout_s=2.0)
