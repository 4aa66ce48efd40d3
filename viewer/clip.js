"use strict";
// A clip plays by itself, in a loop. Everything in it is written as text.
(() => {
  const { node } = window.imake;
  const d = JSON.parse(document.querySelector("#data").textContent), host = document.querySelector("main"), NS = "http://www.w3.org/2000/svg";
  const span = Math.max(d.t.at(-1), 0.02), still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  function svg(tag, attributes) { const made = document.createElementNS(NS, tag); for (const [k, v] of Object.entries(attributes)) made.setAttribute(k, v); return made; }
  const minutes = (t) => `${Math.floor(t / 60)}:${(t % 60).toFixed(1).padStart(4, "0")}`;

  document.title = `${d.run}, frame ${d.at} – Interlatent Live`;
  host.append(node("h1", "", d.run), node("p", "of", [d.environment, d.agent !== d.run ? d.agent : "", d.dictionary, `${span.toFixed(0)} s around frame ${d.at}`].filter(Boolean).join(" · ")));
  const img = node("img"), facts = node("p"), stage = node("div", "stage");
  img.alt = `What ${d.agent || "the agent"} saw`;
  if (d.pictures.length) stage.append(img);
  stage.append(facts);
  host.append(stage);
  if (d.sentence) host.append(node("p", "said", d.sentence.text, " ", node("span", "of", `– said at ${minutes(d.start_s + d.sentence.t)}`)));
  const cursors = d.features.map((f) => {
    const row = node("div", "row"), name = node("span", "", node("b", "", f.name), f.label ? ` ${f.label}` : ""), draw = svg("svg", { viewBox: "0 0 1000 44", preserveAspectRatio: "none", role: "img", "aria-label": `${f.name} ${f.label} over the clip` });
    const score = node("i", "", f.score === null ? "unscored" : f.score.toFixed(2)), most = Math.max(...f.values.map((v) => Math.abs(v ?? 0)), 1e-9);
    score.title = "balanced accuracy of its rule on held-out episodes";
    row.append(name, score, draw);
    d.episode.forEach((e, i) => { if (i && e !== d.episode[i - 1]) { const x = d.t[i] / span * 1000; draw.append(svg("line", { class: "begin", x1: x, x2: x, y1: 0, y2: 44 })); } });
    let run = [];
    const close = () => { if (run.length) draw.append(svg("polyline", { points: run.join(" ") })); run = []; };
    f.values.forEach((v, i) => { if (v === null) close(); else run.push(`${(d.t[i] / span * 1000).toFixed(1)},${(42 - Math.abs(v) / most * 40).toFixed(1)}`); });
    close();
    const line = svg("line", { x1: 0, x2: 0, y1: 0, y2: 44 });
    draw.append(line);
    host.append(row);
    return line;
  });
  const play = node("button", "", ""), slider = node("input"), controls = node("div", "controls", play, slider);
  slider.type = "range";
  slider.max = span;
  slider.step = "any";
  slider.setAttribute("aria-label", "Time within the clip");
  host.append(controls, node("p", "of", "Features with the score of their rules on held-out episodes, 0.5 being chance. Made with Interlatent Live."));

  let at = 0, before = null, playing = !still, shown = -1, seen = -1;
  function show() {
    let i = 0, p = 0;
    for (let lo = 0, hi = d.t.length - 1; lo <= hi;) { const m = (lo + hi) >> 1; if (d.t[m] <= at) { i = m; lo = m + 1; } else hi = m - 1; }
    while (p + 1 < d.pictures.length && d.pictures[p + 1][0] <= at) p++;
    if (p !== seen && d.pictures.length) { seen = p; img.src = `data:image/jpeg;base64,${d.pictures[p][1]}`; }
    if (i !== shown) {
      shown = i;
      facts.replaceChildren(node("span", "", node("b", "", minutes(d.start_s + d.t[i]))), node("span", "", `episode ${d.episode[i]}, step ${d.step[i]}`), node("span", "", `frame ${d.seq[i]}`), node("span", "", d.action[i] ?? ""));
    }
    for (const line of cursors) { const x = at / span * 1000; line.setAttribute("x1", x); line.setAttribute("x2", x); }
    slider.value = at;
  }
  function frame(now) {
    if (playing && before !== null) { at += (now - before) / 1000; if (at > span) at = 0; show(); }
    before = now;
    requestAnimationFrame(frame);
  }
  function toggle() { playing = !playing; play.textContent = playing ? "Pause" : "Play"; }
  play.textContent = playing ? "Pause" : "Play";
  play.addEventListener("click", toggle);
  slider.addEventListener("input", () => { at = Number(slider.value); if (playing) toggle(); show(); });
  document.addEventListener("keydown", (e) => { if (e.key === " " && e.target.tagName !== "BUTTON") { e.preventDefault(); toggle(); } });
  if (still) at = d.at_s;
  show();
  requestAnimationFrame(frame);
})();
