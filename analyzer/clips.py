"""The half minute before an alarm, as a small recording of its own.

1. The newest messages of a boot stay here as they came, 30 s of frame time at most and no more than 64 MiB: references, no
   copies. What is older is let go.
2. An alarm takes what is there, and a thread of its own writes it: `<database>.clips/<run>-<boot>-<frame>.mcap`, through
   `stream.recording`, so that `info`, `replay`, `watch` and `analyze` open it. Alarms of one batch share one.
3. When the file is whole, the row of the alarm names it, relative to the database's folder. A row that names none has none:
   the disk was full, or there were `MAX_CLIPS` or `MAX_BYTES` of them already.

A clip begins and ends with whole batches; it is named in the store but is no part of the digest. A batch costs a few µs here,
an alarm some 10 µs; writing competes for the processor alone.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.errors import RecordingError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.recording import Recorder
from interlatent_live.stream.wire import Picture

__all__ = ["MAX_BYTES", "MAX_CLIPS", "SPAN_S", "Clips", "clips_folder"]

SPAN_S: Final = 30.0
"""Frame time kept, in seconds."""
MAX_KEPT_BYTES: Final = 64 << 20
"""Of the messages kept; a fast stream's clips are shorter for it."""
MAX_CLIPS: Final = 16
"""Files beside one database."""
MAX_BYTES: Final = 256 << 20
"""Of those files together."""
CLOSE_S: Final = 10.0
"""How long the end waits for a clip that is being written."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    path: Path
    alarms: tuple[int, ...]
    manifest: Manifest
    messages: tuple[FrameBatch | Picture, ...]


class Clips:
    """For the analyzer's thread; `database` is the file beside which clips go."""

    def __init__(
        self,
        database: Path,
        *,
        span_s: float = SPAN_S,
        kept_bytes: int = MAX_KEPT_BYTES,
        max_clips: int = MAX_CLIPS,
        max_bytes: int = MAX_BYTES,
        keep_free_bytes: int | None = None,
    ) -> None:
        self.folder = clips_folder(database)
        self._span_ns, self._kept_bytes = int(span_s * 1e9), kept_bytes
        self._max_clips, self._max_bytes, self._keep_free_bytes = max_clips, max_bytes, keep_free_bytes
        self._kept: deque[tuple[int, FrameBatch | Picture]] = deque()
        self._bytes = 0
        self._boot: str | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._open = 0
        self._thread: threading.Thread | None = None
        there = sorted(self.folder.glob("*.mcap")) if self.folder.is_dir() else []
        self.clips = len(there)
        """Files there are, or will be."""
        self.bytes = sum(path.stat().st_size for path in there)
        """Of the files that are whole."""

    def keep(self, message: FrameBatch | Picture) -> None:
        """Remember a message that was analysed, or a picture."""
        if message.boot != self._boot:
            self._kept.clear()
            self._bytes, self._boot = 0, message.boot
        now_ns = int(message.columns["monotonic_ns"][-1]) if isinstance(message, FrameBatch) else message.monotonic_ns
        self._kept.append((now_ns, message))
        self._bytes += _size(message)
        oldest = now_ns - self._span_ns
        while len(self._kept) > 1 and (self._kept[0][0] < oldest or self._bytes > self._kept_bytes):
            self._bytes -= _size(self._kept.popleft()[1])

    def save(self, manifest: Manifest, alarms: list[int], seq: int) -> None:
        """Have what is kept written for these rows of `drift`, whose span ends with frame `seq`. Does not wait."""
        self._count()
        messages = tuple(m for _, m in self._kept if isinstance(m, Picture) or m.manifest_hash == manifest.hash)
        if not any(isinstance(m, FrameBatch) for m in messages):
            return
        if self.clips >= self._max_clips or self.bytes >= self._max_bytes:
            _LOG.warning(
                "the frames before frame %d are not saved: %s holds %d clips of %d and %.0f MB of %.0f; remove some, then later alarms are",
                seq, self.folder, self.clips, self._max_clips, self.bytes / 1e6, self._max_bytes / 1e6,
            )  # fmt: skip
            return
        name = re.sub(r"[^\w.-]", "_", f"{manifest.run}-{manifest.boot}-{seq}") + ".mcap"
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="clips", daemon=True)
            self._thread.start()
        self.clips += 1
        self._open += 1
        self._jobs.put(_Job(self.folder / name, tuple(alarms), manifest, messages))

    def settle(self, writes: Writes) -> None:
        """Name the clips that are whole in the rows of their alarms."""
        while True:
            try:
                job = self._done.get_nowait()
            except queue.Empty:
                return
            self._settled(job, writes)

    def close(self, writes: Writes, timeout_s: float = CLOSE_S) -> None:
        """Wait for what is being written, `timeout_s` a file at most, and name it. More may be saved afterwards."""
        try:
            while self._open:
                self._settled(self._done.get(timeout=timeout_s), writes)
        except queue.Empty:
            _LOG.warning("%d clips below %s were not written in time; no alarm names them", self._open, self.folder)
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(timeout_s)
            self._thread = None

    def _count(self) -> None:
        """How much lies there may have changed: a person removes clips."""
        there = list(self.folder.glob("*.mcap")) if self.folder.is_dir() else []
        self.clips = len(there) + self._open
        self.bytes = sum(path.stat().st_size for path in there)

    def _settled(self, job: _Job, writes: Writes) -> None:
        self._open -= 1
        if job.path.is_file():
            name = f"{self.folder.name}/{job.path.name}"
            for alarm in job.alarms:
                writes.execute("UPDATE drift SET clip = ? WHERE id = ?", name, alarm)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self.folder.mkdir(exist_ok=True)
                self._write(job)
            except (OSError, RecordingError) as error:
                _LOG.warning("the frames before an alarm are not saved: %s", error)
            self._done.put(job)

    def _write(self, job: _Job) -> None:
        """Under a name of its own until it is whole."""
        work = job.path.with_suffix(".part")
        work.unlink(missing_ok=True)
        recorder = Recorder(work, keep_free_bytes=self._keep_free_bytes)
        try:
            recorder.write(job.manifest)
            for message in job.messages:
                recorder.write(message)
            recorder.close()
            work.replace(job.path)
        except BaseException:
            recorder.abandon()
            work.unlink(missing_ok=True)
            raise


def clips_folder(database: Path) -> Path:
    """Where the clips of a database lie."""
    return database.with_name(f"{database.stem}.clips")


def _size(message: FrameBatch | Picture) -> int:
    return message.nbytes if isinstance(message, FrameBatch) else len(message.data)
