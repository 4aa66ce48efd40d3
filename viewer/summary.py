"""What the header, the facts beside the picture and the health strip say: plain text made from rows. Pure functions.

STALE is judged by the page's own clock (no batch was committed for `STALE_S`), so that another host's clock cannot lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from interlatent_live.analyzer.records import Boot, DictionaryRow, LedgerRow, Quality
from interlatent_live.stream.manifest import Manifest
from interlatent_live.viewer.text import DASH, duration, number, plain, quantity
from interlatent_live.viewer.window import Piece

__all__ = ["STALE_S", "Freshness", "flow", "freshness", "header", "moment", "vitals"]

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
    age_ms: float | None,
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
        "age": DASH if age_ms is None else quantity(round(age_ms), "ms") if age_ms < 10_000 else duration(age_ms / 1000),
        "lost": quantity(lost, "frames"),
        "fvu": number(quality.fvu if quality else None, 2),
        "fvu_card": "neurons: none" if neurons else f"card {number(_number(card.get('fvu')), 2)}",
        "which": f"environment 0 of {manifest.num_envs}" if manifest and manifest.num_envs > 1 else "",
        "overhead": quantity(_number(status.get("overhead_us_median")), "µs"),
        "overhead_p99": f"p99 {quantity(_number(status.get('overhead_us_p99')), 'µs')}",
    }


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


_STATUS: Final[Mapping[str, tuple[str, str]]] = {
    "picture_us_median": ("pictures cost", "µs"),
    "pictures_dropped": ("pictures dropped", ""),
    "hook_failures": ("hook failures", ""),
    "metric_failures": ("metric failures", ""),
    "extra_forwards": ("extra forwards", ""),
    "autoreset_rows": ("autoreset rows", ""),
    "silent_points": ("silent tap points", ""),
}


def vitals(ledger: LedgerRow | None) -> list[dict[str, str]]:
    """The health strip's numbers beside the flow; counts that are 0 are left out."""
    if ledger is None:
        return []
    found = [
        {"name": "forward to row, median", "value": quantity(ledger.latency_p50_ms, "ms")},
        {"name": "forward to row, p99", "value": quantity(ledger.latency_p99_ms, "ms")},
        {"name": "tap overhead a step", "value": quantity(_number(ledger.status.get("overhead_us_median")), "µs")},
        {"name": "tap overhead, p99", "value": quantity(_number(ledger.status.get("overhead_us_p99")), "µs")},
    ]
    for key, (name, unit) in _STATUS.items():
        value = _number(ledger.status.get(key))
        if value:
            found.append({"name": name, "value": quantity(value, unit)})
    return found


def moment(manifest: Manifest | None, newest: Piece | None, returned: float | None) -> dict[str, str]:
    """The facts beside the picture. `returned`: sum of rewards of the episode as far as it was seen whole."""
    if manifest is None or newest is None:
        return {"episode": DASH, "step": DASH, "reward": DASH, "return": DASH, "action": DASH}
    return {
        "episode": number(int(newest.episode[-1])),
        "step": number(int(newest.episode_step[-1])),
        "reward": number(float(newest.reward[-1])),
        "return": number(returned),
        "action": _action(manifest, newest),
    }


def _action(manifest: Manifest, newest: Piece) -> str:
    if newest.action is None:
        return DASH
    values = newest.action.ravel()
    if manifest.action.kind == "discrete" and len(values) == 1:
        choice = int(values[0])
        names = manifest.action.names
        return plain(names[choice], 30) if 0 <= choice < len(names) else f"choice {choice}"
    shown = " ".join(f"{v:+.2f}".replace("-", "−") for v in values[:3].tolist())
    return f"{shown} … ({len(values)})" if len(values) > 3 else shown
