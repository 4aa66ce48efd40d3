"use strict";
// The cursor's controls and the timeline. Commands go to the server one at a time; newer ones replace those still waiting.
window.itime = (() => {
  let control = null, place = { live: true }, line = null, look = null;
  let waiting = [], sent = 0, open = 0, openSince = 0, asked = 0;
  const lags = [];   // ms from asking to painted
  const q = (query) => document.querySelector(query);

  function ready(model) {
    control = model;
    q("#pause").addEventListener("click", toggle);
    q("#golive").addEventListener("click", () => send({ op: "live" }));
    q("#back").addEventListener("click", () => send({ op: "step", to: -1 }));
    q("#forth").addEventListener("click", () => send({ op: "step", to: 1 }));
    const slider = q("#frame");
    slider.addEventListener("input", () => send({ op: "seek", to: Number(slider.value) }));
    slider.addEventListener("keydown", (e) => { if (e.key.startsWith("Arrow")) e.preventDefault(); });
    document.addEventListener("keydown", key);
    const canvas = q("[data-canvas=timeline]");
    new ResizeObserver(paint).observe(canvas);
    slider.addEventListener("pointermove", point);
    slider.addEventListener("pointerleave", () => window.idraw.tip(null));
  }

  function key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey || /^(SELECT|TEXTAREA)$/.test(e.target.tagName) || document.body.dataset.view !== "running") return;
    const button = e.target.tagName === "BUTTON";
    if (e.key === " " && !button) toggle();
    else if (e.key === "ArrowLeft") send({ op: "step", to: e.shiftKey ? -10 : -1 });
    else if (e.key === "ArrowRight") send({ op: "step", to: e.shiftKey ? 10 : 1 });
    else if (e.key === "End" && !button) send({ op: "live" });
    else return;
    e.preventDefault();
  }

  function toggle() { send({ op: place.live ? "pause" : "live" }); }

  function send(command) {
    const last = waiting.at(-1);
    if (last && last.op === "step" && command.op === "step") last.to += command.to;
    else {
      if (command.op === "seek" || command.op === "time") waiting = waiting.filter((c) => c.op !== "seek" && c.op !== "time");
      waiting.push(command);
    }
    flush();
  }

  function flush() {
    if (!control || !waiting.length || (open && performance.now() - openSince < 2000)) return;
    open = ++sent;
    openSince = asked = performance.now();
    const json = JSON.stringify(waiting.map((c) => ({ ...c, n: open })));
    waiting = [];
    control.data = { json: [json] };
  }

  function moved(p) {
    place = p;
    if (open && p.n >= open) { open = 0; flush(); }
    document.body.dataset.cursor = p.live ? "live" : "past";
    const pause = q("#pause");
    pause.setAttribute("aria-pressed", String(!p.live));
    q("#pause span").textContent = p.live ? "Pause" : "Resume";
    q("#golive").disabled = p.live;
    const behind = p.live ? "" : `${p.behind.toLocaleString("en").replaceAll(",", "\u2009")} behind`;
    q("#behind").textContent = behind;
    const seq = p.live ? p.newest : p.seq;
    q("#when").textContent = p.t === null || p.t === undefined ? "" : `${window.idraw.clock(p.t)} · frame ${seq.toLocaleString("en").replaceAll(",", "\u2009")}`;
    const slider = q("#frame");
    slider.max = Math.max(p.live ? 0 : p.seq, line && line.next ? line.next - 1 : p.newest, 1);
    if (document.activeElement !== slider || !slider.matches(":active")) slider.value = p.live ? slider.max : seq;
    slider.setAttribute("aria-valuetext", `frame ${seq}, ${p.live ? "live" : behind}`);
    paint();
  }

  function painted() {
    if (!asked || open) return;
    lags.push(performance.now() - asked);
    if (lags.length > 500) lags.shift();
    asked = 0;
  }

  function timeline(data) {
    line = data;
    if (line.first !== undefined) q("#frame").min = line.first;
    paint();
  }

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const css = (name) => style.getPropertyValue(name).trim();
    look = { shade: css("--idle-bg"), line: css("--line"), muted: css("--muted"), bad: css("--bad"), feature: css("--feature"), text: css("--text"), metric: css("--metric") };
    paint();
  }

  // While live the whole is what was looked at last, so that it does not creep between two looks.
  const extent = () => Math.max(place.live ? 0 : place.seq, line.next, line.first + 1);

  function paint() {
    const canvas = q("[data-canvas=timeline]");
    if (!canvas || !look || !line || line.first === undefined) return;
    const r = window.devicePixelRatio || 1, w = Math.round(canvas.clientWidth * r), h = Math.round(canvas.clientHeight * r);
    if (!w) return;
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    const ctx = canvas.getContext("2d"), first = line.first, next = extent();
    const x = (seq) => (seq - first) / (next - first) * w;
    ctx.clearRect(0, 0, w, h);
    line.episodes.forEach(([from, to, number]) => {
      ctx.globalAlpha = number % 2 ? 0.22 : 0.42;
      ctx.fillStyle = look.muted;
      ctx.fillRect(x(from), h * 0.45, Math.max(1, x(to + 1) - x(from)), h * 0.55);
    });
    ctx.globalAlpha = 1;
    const most = Math.max(1, ...line.events);
    ctx.fillStyle = look.feature;
    ctx.globalAlpha = 0.75;
    line.events.forEach((count, i) => {
      const tall = count / most * h * 0.4;
      ctx.fillRect(x(i * line.width), h * 0.43 - tall, Math.max(1, x((i + 1) * line.width) - x(i * line.width) - r * 0.5), tall);
    });
    ctx.globalAlpha = 1;
    ctx.fillStyle = look.bad;
    for (const [from, to] of line.gaps) for (let a = x(from); a < Math.max(x(to), x(from) + 2 * r); a += 3 * r) ctx.fillRect(a, h * 0.45, r, h * 0.55);
    for (const [from, to] of line.alarms) {
      ctx.fillRect(x(from), h * 0.9, Math.max(2 * r, x(to) - x(from)), h * 0.1);
      ctx.beginPath(); ctx.moveTo(x(from) - 3 * r, h * 0.45); ctx.lineTo(x(from) + 3 * r, h * 0.45); ctx.lineTo(x(from), h * 0.72); ctx.fill();
    }
    ctx.fillStyle = look.metric;
    for (const [seq] of line.marks) ctx.fillRect(x(seq), h * 0.5, Math.max(1, 1.5 * r), h * 0.3);
    const at = Math.min(w - 2 * r, x(place.live ? next : place.seq));
    ctx.fillStyle = look.text;
    ctx.fillRect(at - r, 0, 2 * r, h);
    ctx.beginPath(); ctx.arc(at, h * 0.5, 5 * r, 0, 7); ctx.fill();
  }

  function point(e) {
    if (!line || line.first === undefined) return;
    const box = e.target.getBoundingClientRect(), next = extent();
    const seq = Math.round(line.first + (e.clientX - box.left) / box.width * (next - line.first)), slack = (next - line.first) / box.width * 4;
    const lines = [`frame ${seq}`];
    const episode = line.episodes.find(([from, to]) => from <= seq && seq <= to);
    if (episode) lines.push(`episode ${episode[2]}, ${episode[4]}${episode[3] ? ", return " + episode[3] : ""}`);
    for (const [from, to, about] of [...line.alarms, ...line.gaps]) if (from - slack <= seq && seq <= to + slack) lines.push(about);
    for (const [at, kind, about] of line.marks) if (Math.abs(at - seq) < slack) lines.push(`${kind}: ${about}`);
    window.idraw.tip({ clientX: e.clientX, clientY: box.top - 90 }, lines);
  }

  return { ready, send, moved, painted, timeline, colours, lags };
})();
