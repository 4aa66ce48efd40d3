"""An experiment for people: one self-contained HTML page, its plots as inline SVG; nothing is fetched and nothing runs."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["as_html"]

WIDTH: Final = 560
HEIGHT: Final = 300
_LEFT: Final = 50
_BOTTOM: Final = 36
_TOP: Final = 14
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:left}"
    "figure{display:inline-block;margin:1rem 1rem 0 0;max-width:100%}figcaption{font-size:.85rem;color:#555;max-width:34rem}"
    "svg{max-width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#444}"
)


def as_html(found: Mapping[str, Any]) -> str:
    """The page of what `experiment.steer` found."""
    best, effect, controls = found["best"], found["effect_percent"], found["controls"]
    name = html.escape(f"{found['agent']}: steering {found['dictionary']}")
    outcome, unit = found["outcome"]["name"], found["outcome"]["unit"]
    what = f"feature {best['feature']}, {best['operation']}" + ("" if best["operation"] == "ablate" else f" {best['strength']:.4g}")
    rows = [
        ("without", _with_unit(found["baseline"], unit)), ("with", _with_unit(found["steered"], unit)),
        ("change", _percent(effect)), ("random directions", f"{_percent(controls['random'])} over {controls['random']['arms']}"),
        ("wrong sign", _percent(controls["wrong_sign"])),
        ("other features", f"{_percent(controls['other'])} over {controls['other']['arms']}"),
        ("p, Holm over finalists", f"{found['p']:.2g}, {found['p_holm']:.2g}"),
        ("episodes that ended by themselves", "{steered} with, {baseline} without, of {of}".format(**found["falls"])),
        ("pairs", f"{effect['n']}, seeds {found['confirmation']['seeds'][0]} to {found['confirmation']['seeds'][1]}"),
        ("search", f"{found['search']['candidates']} candidates, seeds {found['search']['seeds'][0]} to {found['search']['seeds'][1]}"),
    ]  # fmt: skip
    finalists = "".join(
        f"<tr><td>{f['feature']}</td><td>{f['operation']}</td><td>{f['strength']:.4g}</td><td>{f['searched_percent']:+.1f} %</td>"
        f"<td>{_percent(f['effect_percent'])}</td><td>{f['p_holm']:.2g}</td></tr>"
        for f in found["finalists"]
    )
    bars = [("best", effect), ("random", controls["random"]), ("wrong sign", controls["wrong_sign"]), ("other", controls["other"])]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style><h1>{name}</h1>'
        f"<p>{html.escape(what)}: {html.escape(outcome)} {_percent(effect)}.</p><table>"
        + "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in rows)
        + "</table>"
        + _figure(_bars(bars), f"Change of the mean {outcome} in percent, with 95 % intervals: the best, and its controls.")
        + _figure(_curve(found["dose_response"]), f"Dose-response of feature {best['feature']}: change of {outcome} in percent by dose.")
        + "<h2>Finalists</h2><table><tr><th>feature</th><th>operation</th><th>strength</th><th>in the search</th><th>confirmed</th>"
        f"<th>p (Holm)</th></tr>{finalists}</table><p>{html.escape(found['multiple_comparisons'])}. Intervals: "
        f"{html.escape(found['intervals'])}.</p></html>\n"
    )


def _with_unit(interval: Mapping[str, Any], unit: str) -> str:
    return f"{_span(interval)} {unit}".rstrip()


def _percent(interval: Mapping[str, Any]) -> str:
    if interval["mean"] is None:
        return "not measured"
    if interval["low"] is None:
        return f"{interval['mean']:+.1f} %"
    return f"{interval['mean']:+.1f} % ({interval['low']:+.1f} to {interval['high']:+.1f})"


def _span(interval: Mapping[str, Any]) -> str:
    if interval["low"] is None:
        return f"{interval['mean']:.4g}"
    return f"{interval['mean']:.4g} ({interval['low']:.4g} to {interval['high']:.4g})"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _bars(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    known = [(name, i) for name, i in rows if i["mean"] is not None]
    y = _Axis([i[k] for _, i in known for k in ("mean", "low", "high") if i[k] is not None])
    wide = (WIDTH - _LEFT) / max(1, len(known))
    parts = [y.svg()]
    for n, (name, interval) in enumerate(known):
        middle = _LEFT + wide * (n + 0.5)
        top, bottom = sorted((y.at(interval["mean"]), y.at(0.0)))
        parts.append(
            f'<rect x="{middle - wide / 4:.1f}" y="{top:.1f}" width="{wide / 2:.1f}" height="{max(1, bottom - top):.1f}" fill="#4477aa"/>'
        )
        if interval["low"] is not None:
            low, high = y.at(interval["low"]), y.at(interval["high"])
            parts.append(f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="#222" stroke-width="2"/>')
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{html.escape(name)}</text>')
    return _svg(parts)


def _curve(points: Sequence[Mapping[str, Any]]) -> str:
    rows = [(p["dose"], p["effect_percent"]) for p in points if p["effect_percent"]["mean"] is not None]
    if not rows:
        return _svg([])
    y = _Axis([i[k] for _, i in rows for k in ("mean", "low", "high") if i[k] is not None])
    least = float(rows[0][0])
    most = max(float(rows[-1][0]), least + 1e-9)

    def x(dose: float) -> float:
        return _LEFT + 10 + (WIDTH - _LEFT - 20) * (dose - least) / (most - least)

    bounded = [(d, i) for d, i in rows if i["low"] is not None]
    around = [(d, i["low"]) for d, i in bounded] + [(d, i["high"]) for d, i in reversed(bounded)]
    band = " ".join(f"{x(d):.1f},{y.at(v):.1f}" for d, v in around)
    line = " ".join(f"{x(d):.1f},{y.at(i['mean']):.1f}" for d, i in rows)
    marks = [f'<circle cx="{x(d):.1f}" cy="{y.at(i["mean"]):.1f}" r="3" fill="#4477aa"/>' for d, i in rows]
    labels, last = [], -math.inf
    for d, _ in rows:
        if x(d) - last > 26:
            labels.append(f'<text x="{x(d):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{d:g}</text>')
            last = x(d)
    drawn = [f'<polygon points="{band}" fill="#4477aa" opacity="0.2"/>', f'<polyline points="{line}" fill="none" stroke="#4477aa"/>']
    return _svg([y.svg(), *drawn, *marks, *labels])


class _Axis:
    """The percent axis of a plot, 0 included."""

    def __init__(self, values: Sequence[float]) -> None:
        self.low: float = min([0.0, *values])
        self.high: float = max([0.0, *values])
        if self.high - self.low < 1e-9:
            self.high = self.low + 1
        step = math.pow(10, math.floor(math.log10((self.high - self.low) / 2)))
        self.step: float = step * (5 if (self.high - self.low) / step > 12 else 2 if (self.high - self.low) / step > 6 else 1)

    def at(self, value: float) -> float:
        """Where it stands, in pixels from above."""
        return _TOP + (HEIGHT - _BOTTOM - _TOP) * (self.high - value) / (self.high - self.low)

    def svg(self) -> str:
        """Lines and labels."""
        parts, mark = [], math.ceil(self.low / self.step) * self.step
        while mark <= self.high + 1e-9:
            here, colour = self.at(mark), "#666" if abs(mark) < self.step / 2 else "#ddd"
            parts.append(f'<line x1="{_LEFT}" x2="{WIDTH}" y1="{here:.1f}" y2="{here:.1f}" stroke="{colour}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{here + 4:.1f}" text-anchor="end">{mark:g} %</text>')
            mark += self.step
        return "".join(parts)


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">{"".join(parts)}</svg>'
