"""Replay: the same messages through the same door, paced or not, and nothing lost by haste."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.stream_samples import ANY_PORT, Listener, account, batch, manifest
from tests.test_recording import make, story
from tests.test_wire import same

from interlatent_live.stream import replay as replay_module
from interlatent_live.stream.errors import RecordingError
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.ledger import SubscriberLedger
from interlatent_live.stream.manifest import Manifest
from interlatent_live.stream.publisher import Publisher
from interlatent_live.stream.reading import Recording
from interlatent_live.stream.replay import replay
from interlatent_live.stream.subscriber import Subscriber
from interlatent_live.stream.wire import Bye, Message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make(tmp_path / "run.mcap", story(100))
    return tmp_path / "run.mcap"


def without_manifests(messages: list[Message]) -> list[Message]:
    return [m for m in messages if not isinstance(m, Manifest)]


def test_what_is_replayed_is_what_was_recorded(path: Path) -> None:
    recording, publisher = Recording(path), Publisher(ANY_PORT)
    listener = Listener(publisher.endpoint)
    report = replay(recording, publisher, speed=math.inf, wait_subscriber_s=10)
    publisher.close()
    listener.wait()
    recorded = without_manifests(list(recording.messages()))
    assert listener.messages[0] == recording.manifest
    received = without_manifests(listener.messages)
    assert len(received) == len(recorded)
    assert all(same(a, b) for a, b in zip(received, recorded, strict=True))
    assert (report.frames, report.finished, report.passed_over) == (200, True, 0)
    assert listener.ledger.produced == listener.ledger.received == 200


def test_it_waits_for_a_slow_subscriber(tmp_path: Path) -> None:
    """Queues of two messages here and there, frames of half a megabyte, a subscriber that sleeps before and while it reads."""
    wide = {"1:out": np.zeros((8, 1 << 14), "<f4")}
    frames: list[Message] = []
    for i in range(60):
        one = batch(i * 8, 8)
        frames.append(FrameBatch(one.run, one.boot, one.manifest_hash, one.first_seq, 0, one.columns, wide))
    make(tmp_path / "run.mcap", [manifest(), *frames])
    publisher = Publisher(ANY_PORT, hwm=2)
    reader = subprocess.Popen(
        [sys.executable, "-c", SLOW, publisher.endpoint], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    report = replay(Recording(tmp_path / "run.mcap"), publisher, speed=math.inf, wait_subscriber_s=20)
    publisher.close(linger_s=20)
    out, _ = reader.communicate(timeout=30)
    assert report.waited_s > 0
    assert out.split() == ["480", "0"]


SLOW = """
import sys, time
from interlatent_live.stream.frames import FrameBatch
from interlatent_live.stream.ledger import SubscriberLedger
from interlatent_live.stream.subscriber import Subscriber
from interlatent_live.stream.wire import Bye
from tests.stream_samples import account
ledger = SubscriberLedger()
with Subscriber(sys.argv[1], run="agent", hwm=2) as subscriber:
    message = subscriber.receive(10)
    time.sleep(1.5)
    while message is not None and not isinstance(message, Bye):
        account(ledger, message)
        if isinstance(message, FrameBatch):
            time.sleep(0.01)
        message = subscriber.receive(10)
    account(ledger, message)
print(ledger.received, ledger.wire_lost)
"""


def test_speed_paces_by_frame_time(path: Path) -> None:
    publisher = Publisher(ANY_PORT)
    begin = time.monotonic()
    report = replay(Recording(path), publisher, speed=8.0)
    publisher.close()
    assert time.monotonic() - begin >= 3.98 / 8 * 0.95, "four seconds of frame time, never faster than asked"
    assert report.frames == 200


def test_a_stretch_ends_with_a_farewell_of_its_own(path: Path) -> None:
    publisher = Publisher(ANY_PORT)
    listener = Listener(publisher.endpoint)
    replay(Recording(path), publisher, speed=math.inf, from_s=1.0, to_s=2.0, wait_subscriber_s=10)
    publisher.close()
    listener.wait()
    assert [b.first_seq for b in listener.batches] == list(range(50, 100, 2))
    bye = listener.messages[-1]
    assert isinstance(bye, Bye)
    assert bye.produced == 100
    assert (listener.ledger.not_subscribed, listener.ledger.received, listener.ledger.wire_lost) == (50, 50, 0)


def test_a_torn_recording_ends_with_a_farewell_too(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    publisher = Publisher(ANY_PORT)
    listener = Listener(publisher.endpoint)
    report = replay(Recording(path), publisher, speed=math.inf, wait_subscriber_s=10)
    publisher.close()
    listener.wait()
    assert 0 < report.frames < 200
    assert listener.ledger.produced == listener.ledger.received == report.frames


def test_stopping_ends_it_at_once(path: Path) -> None:
    publisher = Publisher(ANY_PORT)
    listener = Listener(publisher.endpoint)
    begin = time.monotonic()
    report = replay(
        Recording(path), publisher, speed=0.5, wait_subscriber_s=10, stop=lambda: time.monotonic() - begin > 0.5
    )
    publisher.close()
    listener.wait()
    assert not report.finished
    assert report.frames < 200
    assert isinstance(listener.messages[-1], Bye)


def test_a_latecomer_gets_the_manifest(path: Path) -> None:
    publisher = Publisher(ANY_PORT)
    listener = Listener(publisher.endpoint)
    replay(Recording(path), publisher, speed=8.0)
    publisher.close()
    listener.wait()
    assert isinstance(listener.messages[0], Manifest)


def test_one_that_takes_nothing_is_passed_over(path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(replay_module, "PATIENCE_S", 0.2)
    many: list[Message] = [batch(i * 500, 500) for i in range(200)]
    wide = path.with_name("wide.mcap")
    make(wide, [manifest(), *many])
    publisher = Publisher(ANY_PORT, hwm=1)
    with Subscriber(publisher.endpoint, hwm=1) as stalled:
        report = replay(Recording(wide), publisher, speed=math.inf, wait_subscriber_s=10)
        assert stalled.receive(5) is not None
    publisher.close()
    assert report.finished
    assert report.passed_over > 0
    assert len([r for r in caplog.records if "took nothing" in r.message]) == 1


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_speeds_that_make_no_sense(path: Path, speed: float) -> None:
    publisher = Publisher(ANY_PORT)
    with pytest.raises(RecordingError, match="above 0"):
        replay(Recording(path), publisher, speed=speed)
    publisher.close()


def test_accounts_of_a_replay_equal_those_of_the_file(path: Path) -> None:
    ledger = SubscriberLedger()
    for message in Recording(path).messages():
        account(ledger, message)
    assert (ledger.produced, ledger.received, ledger.wire_lost) == (200, 200, 0)
