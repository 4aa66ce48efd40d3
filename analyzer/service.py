"""The analyzer's two loops: what brings the messages of a stream or of a recording to its door.

Live, everything that is pending is analysed before one commit: a slow moment makes transactions larger, not later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.analyzer.clips import Clips
from interlatent_live.analyzer.door import Analyzer
from interlatent_live.analyzer.features import use_one_thread
from interlatent_live.analyzer.following import LOOK_S, Followed, follow_folder, swaps_of
from interlatent_live.analyzer.store import Store
from interlatent_live.analyzer.writes import Writes
from interlatent_live.stream.errors import DictionaryError, StoreFull
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.subscriber import Subscriber

if TYPE_CHECKING:  # torch comes with it
    from interlatent_live.analyzer.dictionary import Dictionary

__all__ = ["analyze_recording", "analyze_stream"]

MAX_DRAIN: Final = 256
"""Messages that share one transaction at most."""
DRAIN_S: Final = 0.02
"""Seconds after which a transaction is closed although more is pending."""
MAX_PENDING: Final = 8_192
"""Statements that share one transaction, from a recording."""
FULL_PATIENCE_S: Final = 30.0
"""How long a full disk is waited for, in seconds."""
_LOG = logging.getLogger(__name__)


def analyze_recording(
    recording: str | Path | Recording,
    db: str | Path,
    *,
    dictionaries: Sequence[str | Path | Dictionary] = (),
    run: str | None = None,
    seconds: float | None = None,
    neurons_only: bool = False,
    override: Sequence[str] = (),
    clips: bool = False,
    swaps: str | Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Analyse a recording into a database, up to `seconds` of frame time; the counts of what was done.

    `clips`: save what came before alarms beside the database, though the recording has it. `swaps`: a database of the same run,
    analysed live: dictionaries come in at the frames at which they did there.
    """
    coming = {} if swaps is None else swaps_of(swaps)
    source = recording if isinstance(recording, Recording) else Recording(recording)
    loaded, overridden = _load(dictionaries, override)
    _prepare(neurons_only)
    with Store(db, run=run or source.manifest.run) as store:
        kept = Clips(Path(db)) if clips else None
        analyzer = Analyzer(store, dictionaries=loaded, neurons_only=neurons_only, override=overridden, clips=kept)
        _patiently(partial(_note, store, {"recording": str(source.path.absolute()), "endpoint": None, "follows": None}), stop)
        adopted: list[Dictionary] = []
        for message in source.messages():
            if coming and isinstance(message, FrameBatch) and (new := coming.pop((message.boot, message.first_seq), None)):
                adopted = [*new, *adopted]
                analyzer.adopt(adopted)
            _patiently(partial(analyzer.feed, message, commit=False), stop)
            if analyzer.pending >= MAX_PENDING:
                _patiently(analyzer.commit, stop)
            if stop() or _over(analyzer, seconds):
                break
        _patiently(analyzer.close, stop)
        return _summary(store, analyzer)


def analyze_stream(
    endpoint: str,
    db: str | Path,
    *,
    dictionaries: Sequence[str | Path | Dictionary] = (),
    run: str | None = None,
    seconds: float | None = None,
    neurons_only: bool = False,
    override: Sequence[str] = (),
    leave_on_bye: bool = True,
    clips: bool = True,
    follow: str | Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Analyse a live stream until its farewell, `seconds` after the first frame, or `stop()`; counts of it.

    `clips`: save what came before alarms beside the database. `follow`: the folder whose dictionaries are swapped in as they
    appear; None: `follow_folder(db)`, or none with `neurons_only`.
    """
    loaded, overridden = _load(dictionaries, override)
    followed = None if follow is None and neurons_only else Followed(Path(follow or follow_folder(db)).absolute())
    _prepare(followed is None)
    with Store(db, run=run) as store, Subscriber(endpoint, run=run) as subscriber:
        origin = {"endpoint": subscriber.endpoint, "recording": None, "follows": None if followed is None else str(followed.folder)}
        _patiently(partial(_note, store, origin), stop)
        since_ns = time.monotonic_ns()
        analyzer = Analyzer(
            store,
            dictionaries=loaded,
            neurons_only=neurons_only,
            override=overridden,
            live_since_ns=since_ns,
            clips=Clips(Path(db)) if clips else None,
        )
        refused: dict[str, int] = {}
        deadline: float | None = None
        look = 0.0
        while not stop():
            if followed is not None and time.monotonic() > look:
                look = time.monotonic() + LOOK_S
                if (dictionaries_now := followed.changed()) is not None:
                    analyzer.adopt(dictionaries_now)
            _drain(analyzer, subscriber, stop)
            for reason, count in subscriber.refused.items():
                analyzer.refuse(reason, count - refused.get(reason, 0))
            refused = dict(subscriber.refused)
            _patiently(analyzer.commit, stop)
            if deadline is None and analyzer.frames and seconds is not None:
                deadline = time.monotonic() + seconds
            late = deadline is not None and time.monotonic() > deadline
            if late or _over(analyzer, seconds) or (analyzer.ended and leave_on_bye):
                break
        _patiently(analyzer.close, stop)
        return _summary(store, analyzer)


def _note(store: Store, origin: Mapping[str, str | None]) -> None:
    """Write down where the frames come from, for the page to fill in commands with."""
    writes = Writes()
    for key, value in origin.items():
        if value is None:
            writes.execute("DELETE FROM meta WHERE key = ?", key)
        else:
            writes.replace("meta", key=key, value=value)
    store.commit(writes)


def _drain(analyzer: Analyzer, subscriber: Subscriber, stop: Callable[[], bool]) -> None:
    """Wait for a message, then take in whatever else is pending."""
    message = subscriber.receive(0.1)
    began = time.monotonic()
    for _ in range(MAX_DRAIN):
        if message is None:
            return
        _patiently(partial(analyzer.feed, message, commit=False), stop)
        if time.monotonic() - began > DRAIN_S or analyzer.ended:
            return
        message = subscriber.receive(0.0)


def _patiently(action: Callable[[], None], stop: Callable[[], bool]) -> None:
    """Try again for a while where the disk is full; what is gathered stays gathered."""
    deadline: float | None = None
    while True:
        try:
            return action()
        except StoreFull as error:
            now = time.monotonic()
            if deadline is None:
                deadline = now + FULL_PATIENCE_S
                _LOG.error("%s; trying again for %.0f s", error, FULL_PATIENCE_S)
            if now > deadline or stop():
                raise
            time.sleep(0.2)


def _over(analyzer: Analyzer, seconds: float | None) -> bool:
    if seconds is None or analyzer.first_ns is None:
        return False
    return analyzer.last_ns - analyzer.first_ns >= seconds * 1e9


def _load(
    dictionaries: Sequence[str | Path | Dictionary], override: Sequence[str]
) -> tuple[list[Dictionary], dict[str, tuple[str, str] | None]]:
    """Those named and those overridden (`NAME` or `NAME=INPUT,OUTPUT`), and what the overrides say by hash."""
    if not dictionaries and not override:
        return [], {}
    from interlatent_live.analyzer.registry import find

    loaded = {d.hash: d for d in (find(str(d)) if isinstance(d, (str, Path)) else d for d in dictionaries)}
    overridden: dict[str, tuple[str, str] | None] = {}
    for entry in override:
        name, _, points = (entry, "", "") if Path(entry).exists() else entry.partition("=")
        chosen = next((d for d in loaded.values() if d.name == name), None) or find(name)
        given = tuple(p.strip() for p in points.split(",")) if points else ()
        if points and (len(given) > 2 or not all(given)):
            raise DictionaryError(f"--override {entry}: after '=' stand the input and the output tap point, as in {name}=2:in,2:out")
        loaded.setdefault(chosen.hash, chosen)
        overridden[chosen.hash] = (given[0], given[-1]) if given else None
    return list(loaded.values()), overridden


def _prepare(neurons_only: bool) -> None:
    """Import torch and look for dictionaries before frames come: it takes seconds, for which they would wait."""
    if neurons_only:
        return
    from interlatent_live.analyzer.registry import installed

    use_one_thread()
    installed()


def _summary(store: Store, analyzer: Analyzer) -> dict[str, Any]:
    sql = "SELECT sum(received), sum(analyzed), sum(subscriber_queue_dropped + not_subscribed + wire_lost) FROM ledger"
    received, analyzed, lost = store.one(sql)
    return {
        "run": store.run,
        "frames": analyzer.frames,
        "analyzed": analyzed or 0,
        "received": received or 0,
        "lost": lost or 0,
    }
