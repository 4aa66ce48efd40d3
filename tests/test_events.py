"""Events equal a brute-force oracle, however the frames are cut into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.analyzer.codes import Codes
from interlatent_live.analyzer.events import Event, EventTracker
from interlatent_live.stream.frames import BASE_COLUMNS, FrameBatch

FEATURES = 4


@dataclass(frozen=True)
class Frame:
    seq: int
    env: int
    episode: int
    step: int
    ended: bool
    ns: int
    codes: dict[int, float] | None
    """None: the tap point did not fire."""


def batch_of(frames: Sequence[Frame]) -> tuple[Codes, np.ndarray[tuple[int], np.dtype[np.int32]], FrameBatch]:
    """The frames (consecutive in seq) as a FrameBatch, with the codes of the observed rows."""
    columns = {name: np.zeros(len(frames), dtype) for name, dtype in BASE_COLUMNS.items()}
    for name in ("env", "episode", "step"):
        columns[name][:] = [getattr(f, name) for f in frames]
    columns["monotonic_ns"][:] = [f.ns for f in frames]
    columns["terminated"] = np.array([f.ended and f.seq % 2 == 0 for f in frames])
    columns["truncated"] = np.array([f.ended and f.seq % 2 == 1 for f in frames])
    rows = [i for i, f in enumerate(frames) if f.codes is not None]
    dense = np.zeros((len(rows), FEATURES), np.float32)
    for i, row in enumerate(rows):
        for feature, value in (frames[row].codes or {}).items():
            dense[i, feature] = value
    return Codes.from_dense(dense), np.array(rows, np.int32), FrameBatch("r", "b", "m", frames[0].seq, 0, columns)


def cut(frames: Sequence[Frame], cuts: set[int]) -> list[list[Frame]]:
    """Into batches at `cuts` (seq), and wherever frames were lost."""
    batches: list[list[Frame]] = []
    for frame in frames:
        if not batches or frame.seq in cuts or frame.seq != batches[-1][-1].seq + 1:
            batches.append([])
        batches[-1].append(frame)
    return batches


def run(frames: Sequence[Frame], cuts: set[int], tracker: EventTracker) -> list[Event]:
    events = []
    for part in cut(frames, cuts):
        events += tracker.update(*batch_of(part))
    return events + tracker.close("end")


def oracle(frames: Sequence[Frame], bridge: int) -> list[Event]:
    """One environment and one feature at a time, one frame after the other."""
    found: list[tuple[tuple[int, int, int, int], Event]] = []
    for env in {f.env for f in frames}:
        observed = [f for f in frames if f.env == env and f.codes is not None]
        for feature in range(FEATURES):
            span: list[Frame] = []
            for i, frame in enumerate(observed):
                assert frame.codes is not None
                if feature not in frame.codes:
                    continue
                span.append(frame)
                after = observed[i + 1] if i + 1 < len(observed) else None
                linked = after is not None and (
                    not frame.ended and after.episode == frame.episode and 0 < after.step - frame.step <= 1 + bridge
                )
                if linked and after is not None and after.codes is not None and feature in after.codes:
                    continue
                if frame.ended:
                    reason, decided = "episode", (0, frame.seq, feature, 0)
                elif after is None:
                    reason, decided = "end", (1, 0, env, feature)
                else:
                    reason = "inactive" if linked else "episode" if after.episode != frame.episode else "gap"
                    decided = (0, after.seq, feature, 0)
                if len(span) >= 2:
                    values = [float(np.float32((f.codes or {})[feature])) for f in span]
                    peak = max(range(len(span)), key=lambda j: (abs(values[j]), -j))
                    total = 0.0
                    for value in values:
                        total += value
                    found.append((decided, Event(
                        feature, env, frame.episode, span[0].seq, frame.seq, span[0].step, frame.step, len(span),
                        values[peak], span[peak].seq, total / len(span), reason,  # type: ignore[arg-type]
                    )))  # fmt: skip
                span = []
    return [event for _, event in sorted(found, key=lambda pair: pair[0])]


@st.composite
def streams(draw: st.DrawFn) -> list[Frame]:
    """Interleaved environments, episode ends, autoreset steps without a frame, missing activations, lost frames."""
    envs = draw(st.sampled_from([1, 1, 2, 3]))
    steps = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    keep, missing, ends, lost = (draw(st.sampled_from([0.0, 0.1, 0.4])) for _ in range(4))
    persistence = draw(st.sampled_from([0.5, 0.9]))
    frames: list[Frame] = []
    seq, active = 0, rng.random((envs, FEATURES)) < 0.5
    episode, reset = [0] * envs, [False] * envs
    for step in range(steps):
        flips = rng.random(active.shape) > persistence
        active ^= flips
        for env in range(envs):
            if reset[env]:  # the row of an autoreset is not a frame
                reset[env], episode[env] = False, episode[env] + 1
                if rng.random() < 0.7:
                    continue
            ended = bool(rng.random() < ends / 4)
            reset[env] = ended or bool(rng.random() < keep / 8)
            values = np.round(rng.normal(size=FEATURES), 1) + 0.05
            codes = {i: float(values[i]) for i in range(FEATURES) if active[env, i]}
            frame = Frame(
                seq, env, episode[env], step, ended, seq * 10_000_000, None if rng.random() < missing else codes
            )
            if rng.random() >= lost / 4 or not frames:
                frames.append(frame)
            seq += 1
    return frames


@given(streams(), st.sets(st.integers(0, 120)), st.integers(0, 1))
@settings(max_examples=250, deadline=None)
def test_equal_the_oracle_however_cut(frames: list[Frame], cuts: set[int], bridge: int) -> None:
    assert run(frames, cuts, EventTracker(FEATURES, bridge=bridge)) == oracle(frames, bridge)


@given(streams(), st.sets(st.integers(0, 120)), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_cap_a_second_does_not_depend_on_the_cuts(frames: list[Frame], cuts: set[int], most: int) -> None:
    whole, parts = (EventTracker(FEATURES, most_a_second=most) for _ in range(2))
    events = run(frames, set(), whole)
    assert run(frames, cuts, parts) == events
    assert parts.suppressed == whole.suppressed
    every = oracle(frames, 1)
    assert len(events) + whole.suppressed == len(every)
    assert [event for event in every if event in events] == events


def one(codes: Sequence[dict[int, float] | None], **changes: Sequence[int]) -> list[Frame]:
    steps = changes.get("step", range(len(codes)))
    episodes = changes.get("episode", [0] * len(codes))
    return [Frame(i, 0, episodes[i], steps[i], False, i, codes[i]) for i in range(len(codes))]


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (one([{1: 1}, {1: -3}, {1: 2}, {}]), [(0, 2, 3, -3.0, 1, "inactive")]),
        (one([{1: 1}, {1: 2}, None, {1: 1}, {}]), [(0, 3, 3, 2.0, 1, "inactive")]),
        (
            one([{1: 1}, {1: 2}, None, None, {1: 1}, {1: 1}, {}]),
            [(0, 1, 2, 2.0, 1, "gap"), (4, 5, 2, 1.0, 4, "inactive")],
        ),
        (one([{1: 1}, {1: 2}, {1: 3}], step=[0, 1, 9]), [(0, 1, 2, 2.0, 1, "gap")]),
        (
            one([{1: 1}, {1: 2}, {1: 3}, {1: 1}], episode=[0, 0, 1, 1]),
            [(0, 1, 2, 2.0, 1, "episode"), (2, 3, 2, 3.0, 2, "end")],
        ),
        (one([{1: 1}, {}, {1: 1}, {}]), []),
        (one([None, None]), []),
    ],
)  # fmt: skip
def test_how_spans_end(frames: list[Frame], expected: list[tuple[object, ...]]) -> None:
    events = run(frames, set(), EventTracker(FEATURES))
    assert [(e.first_seq, e.last_seq, e.frames, e.peak, e.peak_seq, e.ended_by) for e in events] == expected


def test_after_a_close_nothing_goes_on() -> None:
    tracker = EventTracker(FEATURES)
    frames = one([{1: 1.0}] * 6)
    assert tracker.update(*batch_of(frames[:3])) == []
    (event,) = tracker.close("gap")
    assert (event.first_seq, event.last_seq, event.ended_by) == (0, 2, "gap")
    assert tracker.update(*batch_of(frames[3:])) == []
    (event,) = tracker.close("end")
    assert (event.first_seq, event.last_seq, event.ended_by) == (3, 5, "end")
    assert tracker.close("end") == []


def test_closed_holds_what_the_cap_held_back() -> None:
    tracker = EventTracker(FEATURES, most_a_second=1)
    frames = one([{0: 1, 1: 2, 2: 3}, {0: 1, 1: 2, 2: 3}, {}])
    (event,) = tracker.update(*batch_of(frames))
    assert event.feature == 0
    assert tracker.closed.feature.tolist() == [0, 1, 2]
    assert tracker.closed.peak_step.tolist() == [0, 0, 0]
    assert tracker.suppressed == 2
