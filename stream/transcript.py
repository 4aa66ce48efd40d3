"""A recording made by a subscriber, in a process of its own: complete but for what the wire lost, which its ledger tells."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.subscriber import Subscriber
from interlatent_live.stream.wire import Bye

__all__ = ["record_stream"]

log = logging.getLogger(__name__)
_FLUSH_S = 1.0


def record_stream(
    endpoint: str,
    to: str | Path,
    *,
    run: str | None = None,
    seconds: float | None = None,
    rotate_bytes: int | None = None,
    rotate_s: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Record one run (the first that appears, unless named) until its farewell, `seconds` of frame time, or `stop()`.

    `rotate_bytes`, `rotate_s`: go on in another file after so many bytes or seconds. Raises RecordingExists, and
    RecordingError where the disk takes no more; what was flushed stays readable.
    """
    recorder = Recorder(to, rotate_bytes=rotate_bytes, rotate_s=rotate_s)
    begun_ns: int | None = None
    due = time.monotonic() + _FLUSH_S
    try:
        with Subscriber(endpoint, run=run) as subscriber:
            while not stop():
                message = subscriber.receive(0.1)
                if time.monotonic() >= due:
                    recorder.flush()
                    due = time.monotonic() + _FLUSH_S
                if message is None or message.run != (run or message.run):
                    continue
                run = run or message.run
                recorder.write(message)
                if isinstance(message, Bye):
                    return
                if isinstance(message, FrameBatch):
                    clock = message.columns["monotonic_ns"]
                    begun_ns = int(clock[0]) if begun_ns is None else begun_ns
                    if seconds is not None and int(clock[-1]) - begun_ns >= seconds * 1e9:
                        return
            if subscriber.refused:
                log.warning("messages refused: %s", dict(subscriber.refused))
    finally:
        recorder.close()
