"""`interlatent-live doctor`: what a user may have wrong on this machine, each finding with its remedy.

Every check does the real thing where that is cheap: binds the endpoint, sends a message over the loopback, makes a
database in WAL mode, loads the dictionaries, listens to the stream. Takes 3 to 8 s, most of it importing torch. Changes
nothing; what it writes, it removes. A check says PASS, WARN (works, but something will not) or FAIL.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Final, Literal

from .stream.endpoint import DEFAULT_ENDPOINT, connect_address, holder, is_loopback
from .stream.errors import DictionaryError, EndpointError, EndpointInUse, InterlatentError
from .stream.publisher import Publisher
from .stream.subscriber import Subscriber
from .stream.wire import Heartbeat
from .stream_check import listen

__all__ = ["Check", "State", "as_dict", "examine"]

State = Literal["PASS", "WARN", "FAIL"]

PAGE_PORT: Final = 5580
_DISTRIBUTION: Final = "interlatent-live"
_NEEDED_DISK: Final = 100 << 20
_GOOD_DISK: Final = 5 << 30
_LOOPBACK_S: Final = 5.0
_OLDEST: Final = 1_704_067_200
"""2024-01-01 in Unix seconds: a clock before that was never set."""
_NETWORKED: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afs", "ceph", "glusterfs", "vboxsf"})
_IMPORTED: Final = ("interlatent_live", "numpy", "torch", "zmq", "msgpack", "mcap", "PIL", "gymnasium", "onnx", "bokeh", "scipy")
_PURPOSES: Final = {
    "torch": "tapping torch policies, and dictionaries",
    "gym": "il.watch",
    "analyzer": "analyze, watch, demo",
    "viewer": "the page",
    "explainer": "explanations",
    "agents": "the reference agents of run and demo",
    "sb3": "TapCallback",
    "onnx": "il.onnx.expose",
    "data": "tables, export",
}
_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;.*extra\s*==\s*[\"']([\w-]+)[\"'])?")


@dataclass(frozen=True, slots=True)
class Check:
    """One row."""

    name: str
    state: State
    found: str
    remedy: str = ""
    """What to do; '' where there is nothing to do."""


def examine(folder: Path, connect: str | None = None) -> Iterator[Check]:
    """Check after check. `folder`: where recordings and databases would go. `connect`: an endpoint on which a stream is
    expected; None looks at the default one and does not mind if there is none."""
    checks: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("python", _python),
        ("packages", _packages),
        ("names", lambda: _shadows(folder)),
        ("torch", _torch),
        ("endpoint", lambda: _endpoint(connect)),
        ("loopback", _loopback),
        ("page", _page),
        ("disk", lambda: _disk(folder)),
        ("database", lambda: _database(folder)),
        ("clock", _clock),
        ("limits", _limits),
        ("pictures", _pictures),
        ("dictionaries", _dictionaries),
        ("stream", lambda: _stream(connect)),
    )
    for name, check in checks:
        try:
            yield from check()
        except (InterlatentError, OSError, ImportError, RuntimeError, ValueError) as error:
            yield Check(name, "FAIL", f"{type(error).__name__}: {error}", "report this with the line above: the check itself failed")


def _python() -> Iterator[Check]:
    version = sys.version.split()[0]
    where = "a virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    yield Check("python", "PASS", f"{version} at {sys.executable}, {where}")  # an older one cannot import this


def _packages() -> Iterator[Check]:
    try:
        version, wanted = metadata.version(_DISTRIBUTION), metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Check("packages", "FAIL", f"{_DISTRIBUTION} is not installed", "pip install -e . where the project lies")
        return
    by_extra: dict[str, list[tuple[str, str]]] = {}
    for line in wanted:
        match = _REQUIREMENT.match(line)
        if match is not None and match[1].lower() != _DISTRIBUTION:
            by_extra.setdefault(match[3] or "", []).append((match[1], match[2].strip()))
    for extra in ("", *_PURPOSES):
        if extra and extra not in by_extra:
            continue
        troubles, installed = [], []
        for name, bounds in by_extra.get(extra, []):
            try:
                found = metadata.version(name)
            except metadata.PackageNotFoundError:
                troubles.append(f"{name} is missing")
                continue
            installed.append(f"{name} {found}")
            if not _within(found, bounds):
                troubles.append(f"{name} {found} is not {bounds}")
        label = f"packages [{extra}]" if extra else "packages"
        if not troubles:
            yield Check(label, "PASS", (f"{_DISTRIBUTION} {version}, " if not extra else "") + ", ".join(installed))
        elif extra:
            yield Check(label, "WARN", f"{', '.join(troubles)}; needed for {_PURPOSES[extra]}", f"pip install '{_DISTRIBUTION}[{extra}]'")
        else:
            yield Check(label, "FAIL", ", ".join(troubles), f"pip install {_DISTRIBUTION}")


def _within(version: str, bounds: str) -> bool:
    """Whether a version keeps to bounds like '>=3.2.7,<3.3'; what is not understood passes."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(n) for n in re.findall(r"\d+", re.split(r"[a-z+]", text)[0]))

    for bound in filter(None, (b.strip() for b in bounds.split(","))):
        match = re.fullmatch(r"(>=|<|==)\s*([\d.]+)", bound)
        if match is None:
            continue
        have, limit = numbers(version), numbers(match[2])
        if not {">=": have >= limit, "<": have < limit, "==": have == limit}[match[1]]:
            return False
    return True


def _shadows(folder: Path) -> Iterator[Check]:
    """A user's own torch.py beside their script is imported instead of torch."""
    hits = [name for name in _IMPORTED if (folder / f"{name}.py").is_file()]
    if hits:
        files = ", ".join(f"{name}.py" for name in hits)
        yield Check("names", "WARN", f"{files} in {folder} is imported instead of the package", "rename your file")


def _torch() -> Iterator[Check]:
    if util.find_spec("torch") is None:
        yield Check("torch", "WARN", "not installed: arrays can be tapped, torch policies and dictionaries cannot", "pip install torch")
        return
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{torch.__version__}, {torch.get_num_threads()} thread(s) on {cores} core(s)"
    if torch.cuda.is_available():
        yield Check("torch", "PASS", f"{found}, {torch.cuda.get_device_name()}")
    elif torch.version.cuda is not None:
        yield Check("torch", "WARN", f"{found}; made for CUDA, but no device answers", "see nvidia-smi; on a CPU all works")
    else:
        yield Check("torch", "PASS", f"{found}, no CUDA (none is needed)")
    if torch.get_num_threads() > cores:
        yield Check("torch threads", "WARN", "more threads than cores", "export OMP_NUM_THREADS=1: small policies act faster")


def _endpoint(connect: str | None) -> Iterator[Check]:
    endpoint = connect or DEFAULT_ENDPOINT
    if not is_loopback(endpoint):
        yield Check("endpoint", "PASS", f"{endpoint} is on another machine or open to the network; anyone there can read the stream")
        return
    if connect is not None and "*" in connect:
        raise EndpointError(f"{connect} has no port to look at; write for example {DEFAULT_ENDPOINT}")
    who = holder(endpoint)
    if connect is not None and who is not None:
        yield Check("endpoint", "PASS", f"{endpoint} is held by {who}")
        return
    try:
        Publisher(endpoint).close()
    except EndpointInUse as error:
        if connect is not None:
            yield Check("endpoint", "PASS", str(error))
        else:
            yield Check("endpoint", "WARN", f"the default {endpoint} is taken by {who or 'another process'}",
                        "fine if that is your agent; else stop it, or give Tap(endpoint='tcp://127.0.0.1:5571')")  # fmt: skip
    else:
        yield Check("endpoint", "PASS", f"{endpoint} is free")


def _loopback() -> Iterator[Check]:
    publisher = Publisher("tcp://127.0.0.1:*")
    began = time.monotonic()
    sent = Heartbeat("doctor", "doctor", time.monotonic_ns(), time.time_ns(), 0, 0)
    try:
        with Subscriber(publisher.endpoint, run="doctor") as subscriber:
            while time.monotonic() - began < _LOOPBACK_S:
                publisher.poll()
                publisher.send(sent)
                if subscriber.receive(0.05) == sent:
                    took_ms = (time.monotonic() - began) * 1e3
                    yield Check("loopback", "PASS", f"connected, and a message came from publisher to subscriber, in {took_ms:.0f} ms")
                    return
    finally:
        publisher.close()
    yield Check("loopback", "FAIL", f"nothing arrived within {_LOOPBACK_S:g} s", "look for a firewall on 127.0.0.1, or `ip link set lo up`")


def _page() -> Iterator[Check]:
    who = holder(f"127.0.0.1:{PAGE_PORT}")
    browser = next((name for name in ("chromium", "chromium-browser", "google-chrome", "firefox") if shutil.which(name)), None)
    note = f"{browser} is here" if browser else "no browser here, and none is needed: forward the port (ssh -L) and open it where you are"
    if who is not None:
        yield Check("page", "WARN", f"port {PAGE_PORT} of the page is taken by {who}", "give --port 0 for a free one")
    else:
        yield Check("page", "PASS", f"port {PAGE_PORT} is free; {note}")


def _disk(folder: Path) -> Iterator[Check]:
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        yield Check("disk", "FAIL", f"{folder} is no folder that you may write to", "record elsewhere: --record PATH")
        return
    free = shutil.disk_usage(folder).free
    found = f"{free / (1 << 30):.1f} GiB free where recordings go ({folder})"
    if free < _NEEDED_DISK:
        yield Check("disk", "FAIL", found, "free some space: a recording stops when the disk is full, the agent goes on")
    elif free < _GOOD_DISK:
        yield Check("disk", "WARN", found, "free some space, or record elsewhere: a 50 Hz robot with pictures writes about 1 GiB an hour")
    else:
        yield Check("disk", "PASS", found)


def _database(folder: Path) -> Iterator[Check]:
    remedy = "put the database on a local disk: --db PATH"
    kind = _filesystem(folder)
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as made,
            closing(sqlite3.connect(Path(made) / "a.db")) as db,
            closing(sqlite3.connect(Path(made) / "a.db")) as reader,
        ):
            mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            db.execute("CREATE TABLE t (a)")
            db.execute("INSERT INTO t VALUES (1)")
            db.commit()
            seen = reader.execute("SELECT count(*) FROM t").fetchone()[0]
    except (OSError, sqlite3.Error) as error:
        yield Check("database", "FAIL", f"no database can be made in {folder}: {error}", remedy)
        return
    found = f"SQLite {sqlite3.sqlite_version}, journal {mode}, on {kind or 'an unknown file system'}"
    if mode != "wal" or seen != 1:
        yield Check("database", "FAIL", f"{found}: readers and writer would block each other", remedy)
    elif kind in _NETWORKED:
        yield Check("database", "WARN", f"{found}: write-ahead logs need shared memory, which network file systems lack", remedy)
    else:
        yield Check("database", "PASS", found)


def _filesystem(folder: Path) -> str:
    try:
        rows = [line.split() for line in Path("/proc/mounts").read_text("utf-8", "replace").splitlines()]
    except OSError:
        return ""
    here = str(folder.resolve())
    under = [(len(row[1]), row[2]) for row in rows if here == row[1] or here.startswith(row[1].rstrip("/") + "/")]
    return max(under)[1] if under else ""


def _clock() -> Iterator[Check]:
    info = time.get_clock_info("monotonic")
    wall, steady = time.time_ns(), time.monotonic_ns()
    time.sleep(0.25)
    drift_ms = ((time.time_ns() - wall) - (time.monotonic_ns() - steady)) / 1e6
    found = f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}; monotonic to {info.resolution * 1e9:.0f} ns"
    if time.time() < _OLDEST:
        yield Check("clock", "FAIL", found, "set the date (timedatectl, chrony): recordings would carry it")
    elif abs(drift_ms) > 20:
        yield Check("clock", "WARN", f"{found}; the wall clock moved {drift_ms:+.0f} ms against it in 0.25 s",
                    "something sets the clock by steps (use chrony to slew); analysis goes by the monotonic one")  # fmt: skip
    else:
        yield Check("clock", "PASS", found)


def _limits() -> Iterator[Check]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    size = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if files != resource.RLIM_INFINITY and files < 256:
        yield Check("limits", "WARN", f"{files} open files are allowed", "ulimit -n 1024")
    elif size != resource.RLIM_INFINITY and size < (1 << 30):
        yield Check("limits", "WARN", f"files may have {size} bytes at most, and a recording stops there", "ulimit -f unlimited")
    else:
        yield Check("limits", "PASS", f"{files} open files")


def _pictures() -> Iterator[Check]:
    shown = {name: os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "MUJOCO_GL")}
    found = ", ".join(f"{name}={value}" for name, value in shown.items() if value) or "no display"
    headless = not (shown["DISPLAY"] or shown["WAYLAND_DISPLAY"])
    wanted = []
    if headless and shown["SDL_VIDEODRIVER"] not in ("dummy", "offscreen") and util.find_spec("pygame") is not None:
        wanted.append("SDL_VIDEODRIVER=dummy")
    if headless and shown["MUJOCO_GL"] not in ("egl", "osmesa") and util.find_spec("mujoco") is not None:
        wanted.append("MUJOCO_GL=egl")
    if wanted:
        yield Check("pictures", "WARN", f"{found}: environments of pygame or MuJoCo may not render", f"export {' '.join(wanted)}")
    else:
        yield Check("pictures", "PASS", found)


def _dictionaries() -> Iterator[Check]:
    if util.find_spec("torch") is None or util.find_spec("safetensors") is None:
        found = "cannot be loaded without torch and safetensors: neurons are the features"
        yield Check("dictionaries", "WARN", found, "pip install 'interlatent-live[torch]'")
        return
    from .analyzer.dictionary import CFG, load
    from .analyzer.registry import SHIPPED, VARIABLE

    places = [SHIPPED, *(Path(p) for p in os.environ.get(VARIABLE, "").split(os.pathsep) if p)]
    good = []
    for place in places:
        if not place.is_dir():
            yield Check("dictionaries", "WARN", f"{place} is no folder", f"correct {VARIABLE}")
            continue
        for path in sorted(p.parent for p in place.glob(f"*/{CFG}")):
            try:
                one = load(path)
            except DictionaryError as error:
                yield Check("dictionaries", "FAIL", f"{path.name}: {error}", "restore the folder, or take it away")
                continue
            good.append(f"{one.name} {one.hash[:12]}{'' if one.card else ' (no card)'}")
    if good:
        yield Check("dictionaries", "PASS", ", ".join(good))
    else:
        yield Check("dictionaries", "WARN", "none ship: neurons are the features", "reinstall the package")


def _stream(connect: str | None) -> Iterator[Check]:
    endpoint = connect or DEFAULT_ENDPOINT
    if connect is None and holder(endpoint) is None:
        yield Check("stream", "PASS", f"none on the default {endpoint} now")
        return
    heard = listen(connect_address(endpoint))
    for row in heard.rows(expected=connect is not None):
        yield Check(*row)


def as_dict(checks: list[Check]) -> dict[str, Any]:
    """For `--json`."""
    rows = [{"name": c.name, "state": c.state, "found": c.found, "remedy": c.remedy} for c in checks]
    return {"checks": rows, **{state.lower(): sum(c.state == state for c in checks) for state in ("PASS", "WARN", "FAIL")}}
