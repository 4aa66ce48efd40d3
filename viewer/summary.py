"""What the header, the facts beside the picture and the health strip say: plain text made from rows. Pure functions.

STALE is judged by the page's own clock (no batch was committed for `STALE_S`), so that another host's clock cannot lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from interlatent_live.analyzer.records import Boot, DictionaryRow, LedgerRow, Quality, Snapshot
from interlatent_live.stream.manifest import Manifest
from interlatent_live.viewer.choice import Pair
from interlatent_live.viewer.text import DASH, duration, number, plain, quantity
from interlatent_live.viewer.view import pin_text
from interlatent_live.viewer.window import Piece

__all__ = ["STALE_S", "Freshness", "flow", "freshness", "header", "moment", "pairs", "scalars", "vitals"]

STALE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Freshness:
    """How current the page is."""

    state: str
    """'WAITING', 'LIVE', 'STALE' or 'ENDED'."""
    note: str
    """Why, and what to do; '' while live."""


def freshness(boot: Boot | None, frames: bool, silence_s: float, analyzer_silence_s: float | None) -> Freshness:
    """State of the run. `silence_s`: since the last commit of a batch; `analyzer_silence_s`: since the analyzer last wrote its accounts."""
    if boot is None or not frames:
        return Freshness("WAITING", "waiting for the first frame")
    if boot.ended:
        return Freshness("ENDED", "the agent said goodbye; all of its frames are in")
    if silence_s < STALE_S:
        return Freshness("LIVE", "")
    if analyzer_silence_s is not None and analyzer_silence_s < min(silence_s - 0.5, 2 * STALE_S):  # it wrote since
        return Freshness("STALE", f"no frame for {duration(silence_s)}: the agent is silent, the analyzer is listening")
    return Freshness("STALE", f"nothing written for {duration(silence_s)}: is the analyzer running?")


def header(
    manifest: Manifest | None,
    dictionary: DictionaryRow | None,
    ledger: LedgerRow | None,
    quality: Quality | None,
    steps_per_s: float | None,
    newest: Piece | None = None,
) -> dict[str, str]:
    """Texts of the header by name."""
    status = ledger.status if ledger else {}
    card = dictionary.card if dictionary and dictionary.card else {}
    neurons = dictionary is not None and dictionary.kind == "neurons"
    if dictionary is None:
        name = "no features yet"
    elif neurons:
        name = f"neurons of {plain(dictionary.point, 30)}"
    else:
        name = f"{plain(dictionary.name, 30)}#{dictionary.hash[:8]}"
    lost = None if ledger is None else _lost(ledger)
    return {
        "run": plain(manifest.run) if manifest else "",
        "agent": plain(manifest.agent or "your agent", 30) if manifest else "",
        "environment": plain(manifest.environment, 40) if manifest and manifest.environment else "",
        "dictionary": name,
        "steps": quantity(steps_per_s, "steps/s"),
        "lost": quantity(lost, "frames"),
        "fvu": number(quality.fvu if quality else None, 2),
        "fvu_card": "neurons: none" if neurons else f"/ card {number(_number(card.get('fvu')), 2)}",
        "weights": _weights(manifest, newest),
        "overhead": quantity(_number(status.get("overhead_us_median")), "µs"),
    }


def _weights(manifest: Manifest | None, newest: Piece | None) -> str:
    """Whether the agent learns, and how far it is; '' for frozen weights that have one version only."""
    version = int(newest.version[-1]) if newest is not None else 0
    if manifest is None or (manifest.weights != "changing" and version <= 0):
        return ""
    return f"policy v{version}, weights {'changing' if manifest.weights == 'changing' else 'frozen'}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _lost(ledger: LedgerRow) -> int:
    """All frames lost before they were analysed."""
    return (
        ledger.subscriber_queue_dropped + ledger.not_subscribed + ledger.wire_lost + max(0, ledger.received - ledger.analyzed)
    )


def flow(ledger: LedgerRow | None) -> list[dict[str, str]]:
    """The ledger as a flow: stages, and between them what was lost and why."""
    if ledger is None:
        return []
    produced = ledger.subscriber_queue_dropped + ledger.not_subscribed + ledger.wire_lost + ledger.received

    def stage(name: str, count: int | None, about: str) -> dict[str, str]:
        return {"kind": "stage", "name": name, "count": number(count), "about": about}

    def loss(name: str, count: int | None, about: str) -> dict[str, str]:
        return {"kind": "loss" if count else "none", "name": name, "count": number(count), "about": about}

    refused = sum(ledger.refused.values())
    reasons = ", ".join(f"{plain(k, 30)} {v}" for k, v in sorted(ledger.refused.items()))
    found = [
        stage("sealed", max(produced, ledger.next_seq), "frames that the agent produced, as far as the analyzer has heard"),
        loss("queue dropped", ledger.subscriber_queue_dropped, "dropped in the agent's own queue: its sender was behind"),
        loss("not subscribed", ledger.not_subscribed, "published while no analyzer was listening"),
        loss("lost on the wire", ledger.wire_lost, "missing from the sequence numbers: the socket was full"),
        stage("received", ledger.received, "frames that reached the analyzer"),
        loss("not analysed", max(0, ledger.received - ledger.analyzed), "received but not yet, or never, analysed"),
        stage("analysed", ledger.analyzed, "frames committed to the database"),
    ]
    if ledger.recorded or ledger.record_failed:
        about = "frames in the recording, by the agent's accounts; it does not pass through the wire"
        found.append({"kind": "aside", "name": "recorded", "count": number(ledger.recorded), "about": about})
    if ledger.record_failed:
        found.append(loss("not recorded", ledger.record_failed, "frames that the recorder could not write"))
    if refused:
        found.append(loss("messages refused", refused, reasons))
    return found


_TAP: Final = (
    "hooks, torch's dispatch of them, and keeping the step, as this agent's loop pays it: one step in 16 is timed. A loop that waits "
    "between its steps finds cold caches and pays several times what it would pay without waiting. Pictures, and explaining actions, "
    "are measured apart"
)
_STATUS: Final[Mapping[str, tuple[str, str]]] = {
    "picture_us_median": ("pictures cost", "µs"),
    "pictures_dropped": ("pictures dropped", ""),
    "hook_failures": ("hook failures", ""),
    "metric_failures": ("metric failures", ""),
    "extra_forwards": ("extra forwards", ""),
    "autoreset_rows": ("autoreset rows", ""),
    "silent_points": ("silent tap points", ""),
    "why_us_median": ("why this action, each", "µs"),
    "why_agent_us_median": ("of that on the agent's thread", "µs"),
    "why_failures": ("actions not explained", ""),
}


def vitals(ledger: LedgerRow | None, non_finite: int = 0) -> list[dict[str, str]]:
    """The health strip's numbers beside the flow; counts that are 0 are left out. `non_finite`: frames refused by the encoder."""
    if ledger is None:
        return []
    found = [
        {"name": "forward to row, median", "value": quantity(ledger.latency_p50_ms, "ms")},
        {"name": "forward to row, p99", "value": quantity(ledger.latency_p99_ms, "ms")},
        {"name": "tap overhead a step", "value": quantity(_number(ledger.status.get("overhead_us_median")), "µs"), "about": _TAP},
        {"name": "tap overhead, p99", "value": quantity(_number(ledger.status.get("overhead_us_p99")), "µs"), "about": _TAP},
    ]
    for key, (name, unit) in _STATUS.items():
        value = _number(ledger.status.get(key))
        if value:
            found.append({"name": name, "value": quantity(value, unit)})
    share = _number(ledger.status.get("why_share"))
    if share:
        about = "part of the agent's time that explaining its actions takes; bounded by il.Why(share=…)"
        found.append({"name": "why this action, share", "value": quantity(100 * share, "%", 2), "about": about})
    if non_finite:
        about = "frames whose activations held NaN or infinity: kept, but not encoded"
        found.append({"name": "non-finite frames", "value": number(non_finite), "kind": "bad", "about": about})
    return found


def pairs(
    chosen: Sequence[Pair], pinned: Sequence[Pair], snapshot: Snapshot | None, manifest: Manifest | None, names: Mapping[int, str],
    said: Mapping[int, str],
) -> list[dict[str, Any]]:
    """Titles of the strips. `names` of features; `said`: their labels."""
    found: list[dict[str, Any]] = []
    for pair in chosen:
        spec = next((m for m in manifest.metrics if m.name == pair.metric), None) if manifest else None
        title: dict[str, Any] = {
            "pin": pin_text(pair), "pinned": pair in pinned, "key": [pair.feature, pair.metric],
            "feature": "" if pair.feature is None else names.get(pair.feature, f"f{pair.feature}"),
            "label": "" if pair.feature is None else plain(said.get(pair.feature, ""), 40), "metric": plain(spec.name) if spec else "",
            "unit": plain(spec.unit, 12) if spec else "", "r": "", "interval": "",
        }  # fmt: skip
        found.append(title)
        if snapshot is None or pair.metric not in snapshot.metrics:
            continue
        at, j = np.flatnonzero(snapshot.features == pair.feature), snapshot.metrics.index(pair.metric)
        if len(at) and np.isfinite(snapshot.r[at[0], j]):
            k = at[0]
            title["r"] = f"r {snapshot.r[k, j]:+.2f}".replace("-", "−")
            low, high, n = snapshot.low[k, j], snapshot.high[k, j], snapshot.n_eff[k, j]
            if np.isfinite(low) and np.isfinite(high):
                title["interval"] = f"({low:+.2f} … {high:+.2f}), n eff {n:.0f}".replace("-", "−")
    return found


def scalars(series: Mapping[str, Sequence[tuple[int, float | None]]]) -> list[dict[str, Any]]:
    """What the training loop logged: name, newest value, and points (step, value) for a small line."""
    found = []
    for name, points in series.items():
        known = [[step, value] for step, value in points if value is not None and np.isfinite(value)]
        last = points[-1][1] if points else None
        found.append({"name": plain(name, 28), "value": number(last), "points": known})
    return found


def moment(manifest: Manifest | None, at: tuple[Piece, int] | None, returned: float | None) -> dict[str, str]:
    """The facts beside the picture, of one frame: a piece and its row. `returned`: sum of the episode's rewards up to it."""
    if manifest is None or at is None:
        return {"episode": DASH, "step": DASH, "reward": DASH, "return": DASH, "action": DASH}
    piece, row = at
    return {
        "episode": number(int(piece.episode[row])),
        "step": number(int(piece.episode_step[row])),
        "reward": number(float(piece.reward[row])),
        "return": number(returned),
        "action": _action(manifest, piece, row),
    }


def _action(manifest: Manifest, piece: Piece, row: int) -> str:
    if piece.action is None:
        return DASH
    values = piece.action[row]
    if manifest.action.kind == "discrete" and len(values) == 1:
        choice = int(values[0])
        names = manifest.action.names
        return plain(names[choice], 30).replace("_", " ") if 0 <= choice < len(names) else f"choice {choice}"
    shown = " ".join(f"{v:+.2f}".replace("-", "−") for v in values[:3].tolist())
    return f"{shown} … ({len(values)})" if len(values) > 3 else shown
