"use strict";
// The cursor's controls, the timeline and the address. Commands go to the server one at a time; newer ones replace those still waiting.
window.itime = (() => {
  const SPEEDS = [0.25, 0.5, 1, 2, 4, 8];
  let control = null, place = { live: true, n: -1 }, line = null, look = null, previewed = null, drag = null;
  let waiting = [], sent = 0, open = 0, openSince = 0, asked = 0, mark = null, wanted = null;   // mark: frame at which a loop shall begin; wanted: a speed that was asked for
  const lags = [];   // ms from asking to painted
  let counted = 0;
  const q = (query) => document.querySelector(query);
  const thin = (n) => n.toLocaleString("en").replaceAll(",", "\u2009");

  function ready(model) {
    control = model;
    q("#pause").addEventListener("click", toggle);
    q("#golive").addEventListener("click", live);
    q("#back").addEventListener("click", () => step(-1));
    q("#forth").addEventListener("click", () => step(1));
    q("#earlier").addEventListener("click", () => episode(-1));
    q("#later").addEventListener("click", () => episode(1));
    q("#speed").addEventListener("change", (e) => send({ op: "speed", to: Number(e.target.value) }));
    q("#loop").addEventListener("click", loop);
    for (const button of document.querySelectorAll("footer.time button")) button.addEventListener("click", (e) => { if (e.detail) button.blur(); });   // space is then playback's again
    const slider = q("#frame");
    slider.addEventListener("input", () => { if (!drag) send({ op: "seek", to: Number(slider.value) }); });
    slider.addEventListener("keydown", (e) => { if (/^(Arrow|Page|Home|End)/.test(e.key)) e.preventDefault(); });
    const canvas = q("[data-canvas=timeline]");
    new ResizeObserver(paint).observe(canvas);
    slider.addEventListener("pointerdown", (e) => { if (e.shiftKey) { e.preventDefault(); drag = [seqAt(e), seqAt(e)]; slider.setPointerCapture(e.pointerId); } });
    slider.addEventListener("pointermove", (e) => { if (drag) { drag[1] = seqAt(e); paint(); } else point(e); });
    slider.addEventListener("pointerup", () => { if (drag) { range(Math.min(...drag), Math.max(...drag)); drag = null; } });
    slider.addEventListener("pointerleave", () => window.idraw.tip(null));
    setInterval(age, 500);
  }

  const over = () => document.body.dataset.state === "ENDED" && here() >= place.newest;
  const going = () => place.playing || (place.live && !over());
  function toggle() {
    if (over() && !place.playing) first();   // at the end of what has ended: from the beginning
    send({ op: going() ? "pause" : "play" });
  }
  const live = () => { previewed = null; send({ op: "live" }); };
  const step = (frames) => send({ op: "step", to: frames });
  const episode = (way) => send({ op: "episode", to: way });
  const seek = (seq) => send({ op: "seek", to: seq });
  const first = () => seek(line?.first ?? 0);
  const here = () => (place.live ? place.newest : place.seq);

  function faster(way) {
    const at = SPEEDS.indexOf(wanted ?? place.speed) + way;
    if (SPEEDS[at]) { wanted = SPEEDS[at]; send({ op: "speed", to: SPEEDS[at] }); say(`speed ${q(`#speed option[value="${SPEEDS[at]}"]`).textContent}`); }
  }

  // A loop is begun, closed, ended: by one button, by keys, or by a range dragged with shift.
  function loop() {
    if (place.loop || mark !== null) { range(null); return; }
    loopFrom();
  }
  function loopFrom() { mark = here(); if (place.live) send({ op: "pause" }); say(`loop begins at frame ${mark}; go to its end and press ]`); moved(place); }
  function loopTo() {
    if (mark === null && place.loop) mark = place.loop[0];
    if (mark === null || here() === mark) { say("first press [ where the loop shall begin"); return; }
    range(Math.min(mark, here()), Math.max(mark, here()));
  }
  function range(from, to) {
    mark = null;
    if (from === null) { send({ op: "loop" }); say("loop off"); }
    else if (to > from) { send({ op: "loop", first: from, last: to }); send({ op: "seek", to: from }); send({ op: "play" }); say(`looping frames ${from} to ${to}`); }
  }

  function say(text) { q("#said").textContent = text; }

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
    openSince = performance.now();
    if (waiting.some((c) => c.op === "seek" || c.op === "time" || c.op === "step")) asked = openSince;
    const json = JSON.stringify(waiting.map((c) => ({ ...c, n: open })));
    waiting = [];
    control.data = { json: [json] };
  }

  function moved(p) {
    place = p;
    if (open && p.n >= open) { open = 0; flush(); }
    if (!open) wanted = null;
    document.body.dataset.cursor = p.live ? "live" : "past";
    document.body.dataset.playing = p.playing ? "yes" : "no";
    const pause = q("#pause");
    pause.setAttribute("aria-pressed", String(!going()));
    q("#pause span").textContent = going() ? "Pause" : "Play";
    q("#golive").disabled = p.live && p.last;
    const behind = p.live ? "" : `${thin(p.behind)} behind`;
    q("#behind").textContent = behind;
    const seq = here();
    q("#when").textContent = p.t === null || p.t === undefined ? "" : `${window.idraw.clock(p.t)} · frame ${thin(seq)}`;
    const slider = q("#frame");
    slider.max = Math.max(p.live ? 0 : p.seq, line && line.next ? line.next - 1 : p.newest, 1);
    if (document.activeElement !== slider || !slider.matches(":active")) slider.value = p.live ? slider.max : seq;
    slider.setAttribute("aria-valuetext", `frame ${seq}, ${p.live ? "live" : behind}`);
    const speed = q("#speed");
    if (document.activeElement !== speed) speed.value = String(p.speed);
    const button = q("#loop");
    button.setAttribute("aria-pressed", String(Boolean(p.loop)));
    button.textContent = p.loop ? "Loop on" : mark !== null ? "Loop …" : "Loop";
    address(p.view);
    paint();
  }

  // The address says what is looked at; it is written at most every half second.
  let written = 0, due = null, unwritten = null;   // ms
  function address(view) {
    const query = new URLSearchParams(view).toString(), wanted = query ? "?" + query : "";
    unwritten = location.search === wanted ? null : wanted;
    if (unwritten !== null) due ??= setTimeout(settle, Math.max(60, written + 500 - performance.now()));   // not put off by the next message
  }

  // Now: somebody leaves, and will come back to it.
  function settle() {
    clearTimeout(due);
    due = null;
    if (unwritten === null) return;
    written = performance.now();
    history.replaceState(null, "", location.pathname + unwritten + location.hash);
    unwritten = null;
  }

  function painted() {
    if (!asked || open) return;
    lags.push(performance.now() - asked);
    counted += 1;
    if (lags.length > 500) lags.shift();
    asked = 0;
  }

  // The age of what is drawn, measured here: median in the header, 99th percentile in its title and in the health tab.
  function age() {
    const cell = q("[data-age]"), now = window.idraw.age(), mid = window.idraw.quantile(0.5, 100), worst = window.idraw.quantile(0.99);
    const text = now === null ? "–" : now > 10_000 ? "stale" : `${Math.round(document.body.dataset.state === "LIVE" && mid !== null ? mid : now)}`;
    cell.replaceChildren(text);
    if (/^\d/.test(text)) { const u = document.createElement("span"); u.className = "u"; u.textContent = "\u202fms"; cell.append(u); }
    window.ilive.aged(mid, worst);
  }

  function timeline(data) {
    line = data;
    if (line.first !== undefined) q("#frame").min = line.first;
    window.idraw.repaint();
    paint();
  }

  // Frame numbers and frame time, from points at which both are known.
  function timeOf(seq) {
    const ticks = line?.ticks ?? [];
    for (let i = 1; i < ticks.length; i++) {
      if (seq <= ticks[i][0] || i === ticks.length - 1) {
        const [a, ta] = ticks[i - 1], [b, tb] = ticks[i];
        return ta + (seq - a) / Math.max(1, b - a) * (tb - ta);
      }
    }
    return ticks.length ? ticks[0][1] : null;
  }

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const css = (name) => style.getPropertyValue(name).trim();
    look = { shade: css("--idle-bg"), line: css("--line"), muted: css("--muted"), bad: css("--bad"), feature: css("--feature"), text: css("--text"), metric: css("--metric"), font: getComputedStyle(document.body).fontFamily };
    paint();
  }

  // While live the whole is what was looked at last, so that it does not creep between two looks.
  const extent = () => Math.max(place.live ? 0 : place.seq, line.next, line.first + 1);
  const known = () => line && line.first !== undefined;

  function paint() {
    const canvas = q("[data-canvas=timeline]");
    if (!canvas || !look || !known()) return;
    const r = window.devicePixelRatio || 1, w = Math.round(canvas.clientWidth * r), h = Math.round(canvas.clientHeight * r);
    if (!w) return;
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    const ctx = canvas.getContext("2d"), begin = line.first, next = extent();
    const x = (seq) => (seq - begin) / (next - begin) * w;
    const events = [0, h * 0.3], episodes = [h * 0.33, h * 0.56], alarms = [h * 0.6, h * 0.74], foot = h * 0.93;   // lanes, from above
    ctx.clearRect(0, 0, w, h);
    ctx.globalAlpha = 0.5;
    ctx.fillStyle = look.shade;
    for (const [top, bottom] of [events, episodes, alarms]) ctx.fillRect(0, top, w, bottom - top);
    const most = Math.max(1, ...line.events);
    ctx.fillStyle = look.feature;
    ctx.globalAlpha = 0.75;
    line.events.forEach((count, i) => {
      const tall = count / most * (events[1] - events[0]);
      ctx.fillRect(x(i * line.width), events[1] - tall, Math.max(1, x((i + 1) * line.width) - x(i * line.width) - r * 0.5), tall);
    });
    ctx.font = `${10 * r}px ${look.font}`;
    ctx.textBaseline = "middle";
    line.episodes.forEach(([from, to, number]) => {
      ctx.globalAlpha = number % 2 ? 0.22 : 0.42;
      ctx.fillStyle = look.muted;
      const wide = x(to + 1) - x(from);
      ctx.fillRect(x(from), episodes[0], Math.max(1, wide - (wide > 4 * r ? r : 0)), episodes[1] - episodes[0]);
      ctx.globalAlpha = 1;
      ctx.fillStyle = look.text;
      ctx.textAlign = "left";
      if (wide > 24 * r) ctx.fillText(String(number), x(from) + 4 * r, (episodes[0] + episodes[1]) / 2);
    });
    ctx.fillStyle = look.bad;
    for (const [from, to] of line.gaps) for (let a = x(from); a < Math.max(x(to), x(from) + 2 * r); a += 3 * r) ctx.fillRect(a, events[0], r, alarms[1]);
    for (const [from, to] of line.alarms) ctx.fillRect(x(from), alarms[0], Math.max(3 * r, x(to) - x(from)), alarms[1] - alarms[0]);
    ctx.strokeStyle = look.feature;
    ctx.lineWidth = 1.5 * r;
    for (const [from, to, , , , shadow] of line.interventions) {   // what acts is filled, what only measures is dashed
      const wide = Math.max(3 * r, x(to ?? next) - x(from));
      ctx.setLineDash(shadow ? [3 * r, 2 * r] : []);
      if (!shadow) { ctx.globalAlpha = 0.3; ctx.fillStyle = look.feature; ctx.fillRect(x(from), alarms[0], wide, alarms[1] - alarms[0]); ctx.globalAlpha = 1; }
      ctx.strokeRect(x(from), alarms[0] + r, wide, alarms[1] - alarms[0] - 2 * r);
    }
    ctx.setLineDash([]);
    ctx.fillStyle = look.metric;
    for (const [seq, kind] of line.marks) {
      const mx = x(seq), my = (alarms[0] + alarms[1]) / 2;
      ctx.beginPath();
      if (kind === "watchpoint") { ctx.moveTo(mx, my - 5 * r); ctx.lineTo(mx + 4 * r, my); ctx.lineTo(mx, my + 5 * r); ctx.lineTo(mx - 4 * r, my); } else ctx.arc(mx, my, 2.4 * r, 0, 7);
      ctx.fill();
    }
    ticks(ctx, x, w, foot, r);
    const looped = drag ? [Math.min(...drag), Math.max(...drag)] : place.loop ?? (mark !== null ? [mark, here()] : null);
    if (looped) {
      ctx.fillStyle = look.metric;
      ctx.globalAlpha = 0.22;
      ctx.fillRect(x(looped[0]), 0, x(looped[1]) - x(looped[0]), alarms[1]);
      ctx.globalAlpha = 1;
      for (const seq of looped) ctx.fillRect(x(seq) - r, 0, 2 * r, alarms[1]);
    }
    if (previewed !== null) { ctx.fillStyle = look.metric; ctx.fillRect(x(previewed) - r, 0, 2 * r, alarms[1]); }
    const at = Math.min(w - 2 * r, x(place.live ? next : place.seq));
    ctx.fillStyle = look.text;
    ctx.fillRect(at - r, 0, 2 * r, alarms[1]);
    ctx.beginPath(); ctx.moveTo(at - 5 * r, 0); ctx.lineTo(at + 5 * r, 0); ctx.lineTo(at, 7 * r); ctx.fill();
  }

  function ticks(ctx, x, w, y, r) {
    const last = timeOf(extent() - 1), first = timeOf(line.first);
    if (last === null || last <= first) return;
    const every = [5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400].find((s) => s * w / (last - first) > 70 * r) ?? 36000;
    ctx.fillStyle = look.muted;
    ctx.textAlign = "center";
    const points = line.ticks;
    for (let t = Math.ceil(first / every) * every, i = 1; t <= last; t += every) {
      while (i < points.length - 1 && points[i][1] < t) i++;
      const [a, ta] = points[i - 1], [b, tb] = points[i];
      const at = x(a + (t - ta) / Math.max(1e-9, tb - ta) * (b - a));
      if (at > 14 * r && at < w - 14 * r) ctx.fillText(window.idraw.clock(t), at, y);
    }
  }

  function seqAt(e) {
    const box = q("#frame").getBoundingClientRect(), next = extent();
    return Math.max(line.first, Math.min(next - 1, Math.round(line.first + (e.clientX - box.left) / box.width * (next - line.first))));
  }

  function point(e) {
    if (!known()) return;
    const box = e.target.getBoundingClientRect(), next = extent(), seq = seqAt(e), slack = (next - line.first) / box.width * 4;
    const t = timeOf(seq), lines = [`frame ${thin(seq)}${t === null ? "" : " · " + window.idraw.clock(t)}`];
    const episode = line.episodes.find(([from, to]) => from <= seq && seq <= to);
    if (episode) lines.push(window.itokens.words(`episode ${episode[2]}, ${episode[4]}${episode[3] ? ", return " + episode[3] : ""}`));
    for (const [from, to, about] of [...line.alarms, ...line.gaps, ...line.interventions]) if (from - slack <= seq && seq <= (to ?? next) + slack) lines.push(about);
    for (const [at, kind, about] of line.marks) if (Math.abs(at - seq) < slack) lines.push(`${kind}: ${about}`);
    window.idraw.tip({ clientX: e.clientX, clientY: box.top - 100 }, lines);
  }

  // What happened about a frame time, for whoever points at it.
  function about(t, slack) {
    if (!known()) return [];
    const found = [];
    for (const [, , text, a, b] of [...line.alarms, ...line.gaps, ...line.interventions]) if (a - slack <= t && t <= (b ?? Infinity) + slack) found.push(text);
    for (const [, kind, text, at] of line.marks) if (Math.abs(at - t) < slack) found.push(`${kind}: ${text}`);
    return found;
  }

  function preview(seq, t) {
    previewed = seq;
    window.idraw.preview(seq === null ? null : t);
    paint();
  }

  return { ready, send, moved, settle, painted, timeline, colours, lags, toggle, live, step, episode, seek, first, faster, loop, loopFrom, loopTo, unloop: () => range(null), preview, about, say, data: () => (known() ? line : null), count: () => counted, place: () => place };
})();
