"""A card for people: Markdown, and one self-contained HTML page with its plots as inline SVG.

Nothing is fetched and nothing runs: the page is some 20 KB and opens from a disk in ten years.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from interlatent_live.analyzer.artifact import pack_json
from interlatent_live.analyzer.dictionary import CARD
from interlatent_live.analyzer.why_card import lines
from interlatent_live.stream.errors import DictionaryError

__all__ = ["as_html", "as_markdown", "write_card"]

WIDTH: Final = 460
HEIGHT: Final = 220
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:left}"
    "figure{display:inline-block;margin:1rem 1rem 0 0}figcaption{font-size:.85rem;color:#555;max-width:28rem}"
    "code{font-size:.85rem;word-break:break-all}svg text{font:11px system-ui,sans-serif;fill:#444}"
)


def write_card(directory: Path, card: Mapping[str, Any]) -> list[Path]:
    """Write card.md, card.html and, last, card.json; each appears whole."""
    contents = {"card.md": as_markdown(card).encode(), "card.html": as_html(card).encode(), CARD: pack_json(card)}
    written = []
    for name, data in contents.items():
        work = directory / f".{name}.{os.getpid()}"
        try:
            work.write_bytes(data)
            os.replace(work, directory / name)
        except OSError as error:
            work.unlink(missing_ok=True)
            raise DictionaryError(f"{directory / name} cannot be written: {error}") from error
        written.append(directory / name)
    return written


def as_markdown(card: Mapping[str, Any]) -> str:
    """Figures, baselines and where they come from."""
    lines = [f"# {card['name']}", "", "| measure | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _figures(card)]
    lines += ["", "With as many active terms:", "", "| | FVU | return recovery |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in _baselines(card)]
    lines += ["", *(f"- {name}: {value}" for name, value in _origin(card)), ""]
    return "\n".join(lines)


def as_html(card: Mapping[str, Any]) -> str:
    """One page."""
    name = html.escape(str(card["name"]))

    def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
        top = f"<tr>{''.join(f'<th>{html.escape(h)}</th>' for h in head)}</tr>" if head else ""
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table>{top}{body}</table>"

    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{name}</title><style>{_STYLE}</style>"
        f"<h1>{name}</h1>{table(_figures(card))}<h2>With as many active terms</h2>"
        f"{table(_baselines(card), ('', 'FVU', 'return recovery'))}<h2>Plots</h2>{''.join(_plots(card))}"
        f"<h2>Origin</h2>{table(_origin(card))}</html>\n"
    )


def _figures(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    recovery = card.get("return_recovery") or {}
    interval = f" (95 %: {_n(recovery.get('low'))} to {_n(recovery.get('high'))}, {recovery.get('episodes')} episodes)" if recovery else ""
    rows = [
        ("recipe", str(card.get("recipe") or "–")),
        ("latents, k", f"{card['features']}, {card.get('k') or '–'}"),
        ("L0", _n(card["l0"])),
        ("FVU, held out", _n(card["fvu"])),
        ("return recovery", _n(recovery.get("mean")) + interval),
        ("action agreement", _n(card["action_agreement"])),
        ("action error, standard deviations", _n(card["action_error"])),
        ("KL of the action, nats", _n(card.get("action_kl"))),
        ("error of the value; its standard deviation", f"{_n(card.get('value_error'))}; {_n(card.get('value_deviation'))}"),
        *lines(card),
        ("dead share", _n(card["dead_share"])),
        ("cosine, norm ratio", f"{_n(card.get('cosine'))}, {_n(card.get('norm_ratio'))}"),
    ]
    if not card.get("language"):
        return rows
    return [row for row in rows if row[1].strip("–; ")] + _language(card["language"])


def _language(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the dictionary keeps of a language model when it is spliced in, on texts that it was not trained on."""

    def share(name: str) -> str:
        part = found.get(f"recovered_over_{name}") or {}
        return f"{_n(part.get('value'))} (95 %: {_n(part.get('low'))} to {_n(part.get('high'))})"

    entropy = found.get("cross_entropy") or {}
    figures = ", ".join("–" if (value := entropy.get(name)) is None else f"{value:.3f}" for name in ("clean", "spliced", "zero", "mean"))
    return [
        ("texts that no training saw; tokens of them", f"{found.get('texts', '–')}; {found.get('tokens', '–')}"),
        ("FVU on these", _n(found.get("fvu"))),
        ("cross-entropy, nats a token: clean, spliced, zeros, mean", figures),
        ("of the loss that zeros in its place cost, recovered", share("zero")),
        ("of the loss that its mean costs, recovered", share("mean")),
    ]


def _baselines(card: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    own = ("this dictionary", _n(card["fvu"]), _n((card.get("return_recovery") or {}).get("mean")))
    return [own, *((name, _n(b["fvu"]), _n(b["return_recovery"])) for name, b in card["baselines"].items())]


def _origin(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [
        ("judged on", card.get("recording")), ("frames held out", (card.get("frames") or {}).get("held_out")),
        ("agent", card.get("agent")), ("tap points", " → ".join(card.get("tap_points") or [])), ("seed", card.get("seed")),
        ("trained by", card.get("command")), ("judged by", card.get("card_command")),
        ("model hash", card.get("model_hash")), ("dictionary hash", card["hash"]),
    ]  # fmt: skip
    return [(name, str(value)) for name, value in found if value not in (None, "")]


def _plots(card: Mapping[str, Any]) -> list[str]:
    plots = []
    fvus = [(n, b["fvu"]) for n, b in card["baselines"].items() if b["fvu"] is not None]
    if card["fvu"] is not None:
        plots.append(_bars([("this", card["fvu"]), *fvus], "FVU of held-out frames, beside baselines with as many active terms"))
    recovery = card.get("return_recovery")
    if recovery and recovery["mean"] is not None:
        others = [(n, b["return_recovery"]) for n, b in card["baselines"].items() if b["return_recovery"] is not None]
        text = "Return recovery when spliced into the policy; the line is the 95 % interval"
        plots.append(_bars([("this", recovery["mean"]), *others], text, (recovery["low"], recovery["high"])))
    density = card.get("density")
    if density:
        edges = density["log10_edges"]
        bars = [("0", float(density["silent"]))]
        bars += [(f"{edge:g}", float(n)) for edge, n in zip(edges[:-1], density["latents"], strict=True)]
        plots.append(_bars(bars, "Latents by density: log₁₀ of the share of frames in which they are active (0: in none)"))
    phases = card.get("fvu_by_phase")
    if phases:
        text = "FVU by steps into the episode, against the variance of all frames"
        plots.append(_bars([(str(p["from_step"]), p["fvu"]) for p in phases], text))
    alive = card.get("alive_after")
    if alive:
        plots.append(_line([(frames, 1 - share) for frames, share in alive], "Share of latents not yet active, by frames seen"))
    returns = card.get("episode_returns")
    if returns:
        pairs = list(zip(returns["clean"], returns["dictionary"], strict=True))
        plots.append(_scatter(pairs, "Returns by seed: clean (across), spliced (up)"))
    return plots


def _bars(bars: Sequence[tuple[str, float]], caption: str, interval: tuple[float | None, float | None] | None = None) -> str:
    top = max(1e-12, *(abs(v) for _, v in bars), *(v for v in interval or () if v is not None))
    slot = WIDTH / len(bars)
    scale = (HEIGHT - 50) / top
    parts = []
    for i, (name, value) in enumerate(bars):
        height, x = max(0.0, value) * scale, i * slot
        colour = "#2a6f97" if i == 0 else "#a9c6d8"
        box = f'x="{x + slot * 0.15:.1f}" y="{HEIGHT - 25 - height:.1f}" width="{slot * 0.7:.1f}" height="{height:.1f}"'
        parts.append(f'<rect {box} fill="{colour}"/>')
        parts.append(f'<text x="{x + slot / 2:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{html.escape(name)}</text>')
        parts.append(f'<text x="{x + slot / 2:.1f}" y="{HEIGHT - 29 - height:.1f}" text-anchor="middle">{_n(value)}</text>')
    if interval is not None and None not in interval:
        low, high = (HEIGHT - 25 - max(0.0, v or 0.0) * scale for v in interval)
        ends = f'x1="{slot * 0.3:.1f}" x2="{slot * 0.3:.1f}" y1="{low:.1f}" y2="{high:.1f}"'
        parts.append(f'<line {ends} stroke="#d1495b" stroke-width="2"/>')
    return _figure(parts, caption)


def _line(points: Sequence[tuple[float, float]], caption: str) -> str:
    right, top = max(x for x, _ in points), max(1e-12, *(y for _, y in points))
    path = " ".join(f"{40 + x / right * (WIDTH - 60):.1f},{HEIGHT - 25 - y / top * (HEIGHT - 50):.1f}" for x, y in points)
    return _figure([f'<polyline points="{path}" fill="none" stroke="#2a6f97" stroke-width="2"/>', *_axes(0, right, 0, top)], caption)


def _scatter(points: Sequence[tuple[float, float]], caption: str) -> str:
    values = [v for point in points for v in point]
    low, high = min(0.0, *values), max(1e-12, *values)

    def at(value: float, length: float) -> float:
        return (value - low) / (high - low) * length

    dots = [
        f'<circle cx="{40 + at(x, WIDTH - 60):.1f}" cy="{HEIGHT - 25 - at(y, HEIGHT - 50):.1f}" r="3" fill="#2a6f97" fill-opacity=".5"/>'
        for x, y in points
    ]
    return _figure([*dots, *_axes(low, high, low, high)], caption)


def _axes(left: float, right: float, bottom: float, top: float) -> list[str]:
    return [
        f'<path d="M40 15V{HEIGHT - 25}H{WIDTH - 10}" fill="none" stroke="#999"/>',
        f'<text x="40" y="{HEIGHT - 10}">{left:g}</text><text x="{WIDTH - 10}" y="{HEIGHT - 10}" text-anchor="end">{right:.6g}</text>',
        f'<text x="36" y="{HEIGHT - 26}" text-anchor="end">{bottom:.3g}</text><text x="36" y="24" text-anchor="end">{top:.3g}</text>',
    ]


def _figure(parts: Sequence[str], caption: str) -> str:
    drawing = f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{"".join(parts)}</svg>'
    return f"<figure>{drawing}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _n(value: Any) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}"
