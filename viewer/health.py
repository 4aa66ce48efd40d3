"""How the services are: agent, analyzer, dictionary, explainer, language model. What is silent or wrong says so, in words."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from interlatent_live.analyzer.records import LedgerRow
from interlatent_live.viewer.summary import STALE_S, Freshness
from interlatent_live.viewer.text import clock, duration, number, plain

__all__ = ["services", "trouble"]

_EXPLAINER_SILENT_S: Final = 20.0
_FAILURES: Final = ("hook_failures", "metric_failures", "silent_points", "pictures_dropped")


def services(
    fresh: Freshness,
    ledger: LedgerRow | None,
    alarms: int,
    newest_alarm: tuple[str, float] | None,
    explained: bool,
    explainer: Mapping[str, Any] | None,
) -> list[dict[str, str]]:
    """One line each: name, what it is at, and kind: '', 'bad' or 'idle'. `newest_alarm`: what was measured, and frame time, s."""
    found: list[dict[str, str]] = []

    def say(name: str, value: str, kind: str = "", about: str = "") -> None:
        found.append({"name": name, "value": value, "kind": kind, "about": about})

    ended, now = fresh.state == "ENDED", time.time()
    status = ledger.status if ledger else {}
    counts = {k.replace("_", " "): status.get(k) for k in _FAILURES}
    failures = [f"{number(n)} {what}" for what, n in counts.items() if isinstance(n, (int, float)) and n]
    if failures and not ended:
        say("agent", ", ".join(failures), "bad", "by the agent's own heartbeat")
    else:
        state = {"LIVE": "acting", "STALE": "silent", "ENDED": "said goodbye", "WAITING": "not heard of yet"}[fresh.state]
        say("agent", state, {"STALE": "bad", "LIVE": ""}.get(fresh.state, "idle"))
    if ledger is None:
        say("analyzer", "has written no accounts yet", "idle")
    elif ended:
        say("analyzer", "has all of its frames", "idle")
    else:
        silence = max(0.0, now - ledger.updated_wall_ns / 1e9)
        say("analyzer", f"wrote {duration(silence)} ago", "bad" if silence > 2 * STALE_S else "", "when it last wrote its accounts")
    if alarms and newest_alarm is not None:
        measure, at = newest_alarm
        say("drift", f"{alarms} alarm{'s' if alarms > 1 else ''}, last of {measure} at {clock(at)}", "bad", "marked in the timeline")
    else:
        say("drift", "no alarm", "idle", "the dictionary's error and activity stay within its card")
    if not explained:
        say("explainer", "not started", "idle", "interlatent-live explain --live puts features into words")
    elif explainer is None:
        say("explainer", "its explanations are there; none is running", "idle")
    else:
        _explainer(explainer, ended, now, say)
    return found


def _explainer(status: Mapping[str, Any], ended: bool, now: float, say: Any) -> None:
    silence = now - float(status.get("wall_ns", 0)) / 1e9
    parts = [f"{number(status[k])} {k}" for k in ("explained", "waiting") if isinstance(status.get(k), (int, float))]
    silent = silence > _EXPLAINER_SILENT_S
    if silent:
        parts.append("not running" if ended else f"silent for {duration(silence)}")
    say("explainer", ", ".join(parts) or "running", "idle" if silent and ended else "bad" if silent else "")
    asked = status.get("llm")
    if isinstance(asked, Mapping):
        failed = asked.get("failures") or {}
        count = sum(failed.values()) if isinstance(failed, Mapping) else 0
        note = plain(str(asked.get("note") or ""), 80)
        words = note or (f"answers; {number(count)} failures" if count else "answers")
        say("language model", words, "bad" if note or count else "")


def trouble(rows: list[dict[str, str]], flow: list[dict[str, str]]) -> bool:
    """Whether the health tab has something that needs to be seen."""
    return any(r["kind"] == "bad" for r in rows) or any(r["kind"] == "loss" for r in flow)
