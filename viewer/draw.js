"use strict";
// Raster and strips, painted from Bokeh's sources onto canvases of our own. Time is laid on a fixed grid of pixels, so a column
// never changes its look while it moves; a repaint happens when the window has moved by a pixel or something new has come.
window.idraw = (() => {
  const RIGHT = 58, TOP = 4, BOTTOM = 24, BIN = 2;   // CSS px; BIN: pixels in a bin of the strips
  const BAND = [0.34, 0.95];                          // part of a strip's place that its lines fill, from above
  let models = null, look = null, place = { live: true, boundaries: [] };
  let used = 8, pairs = [], ranges = [], pairsKey = "";
  let dirty = true, painted = -1, hover = null;       // hover: {t, row}
  let newest = null, shown = null, last = 0;          // frame time of the newest frame and of the window's right edge, s
  const canvases = {};
  const small = document.createElement("canvas");
  const stats = { paints: 0, paint_ms: 0 };

  function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

  function colours(glyphs) {
    const palette = new Uint32Array(256);
    glyphs("ramp").forEach((c, i) => {
      const n = parseInt(c.slice(1, 7), 16);
      palette[i] = i === 0 ? 0 : (0xff000000 | ((n & 255) << 16) | (n & 0xff00) | (n >> 16)) >>> 0;
    });
    look = { palette, feature: glyphs("feature"), metric: glyphs("metric"), boundary: glyphs("boundary"), panel: css("--panel"), muted: css("--muted"), line: css("--line"), text: css("--text") };
    dirty = true;
  }

  function ready(args) {
    models = args;
    for (const name of ["raster", "strips"]) {
      const host = document.querySelector(`[data-canvas=${name}]`);
      canvases[name] = host;
      new ResizeObserver(resized).observe(host);
      host.addEventListener("pointermove", (e) => hovered(e, name));
      host.addEventListener("pointerleave", () => { hover = null; tip(null); dirty = true; });
      host.addEventListener("click", (e) => { const t = timeAt(e, host); if (t !== null) window.itime.send({ op: "time", to: t }); });
    }
    resized();
    frames();
    requestAnimationFrame(step);
  }

  function frames() {
    dirty = true;
    const t = models.strips.data.t;
    newest = t && t.length ? t[t.length - 1] : null;
    if (newest === null || (shown !== null && Math.abs(newest - shown) > 5)) shown = newest;
  }

  function step(now) {
    setTimeout(() => requestAnimationFrame(step), 20);   // the picture moves by a pixel about every 50 ms: no need to look oftener
    if (document.hidden || !look) return;
    const dt = Math.min(0.5, (now - last) / 1000);
    last = now;
    if (place.live && newest !== null) {   // glides after the newest frame at the speed of time, 0.15 s in hand
      if (shown === null) shown = newest;
      shown = Math.min(newest, shown + dt * Math.max(0, 1 + 1.5 * (newest - shown - 0.15)));
    }
    const end = place.live ? Math.max(shown ?? 0, models.span) : place.end;
    const width = plotWidth(canvases.raster);
    const edge = Math.floor(end * width / models.span);
    if (!dirty && edge === painted) return;
    dirty = false;
    painted = edge;
    const began = performance.now();
    raster(edge);
    strips(edge);
    stats.paints += 1;
    stats.paint_ms += performance.now() - began;
    window.itime?.painted();
  }

  // Asking for sizes makes the browser lay out the page: once after a change, not with every paint.
  const geometry = new WeakMap(), sizes = new WeakMap();
  let font = "sans-serif";
  function resized() {
    for (const host of Object.values(canvases)) {
      const left = parseFloat(getComputedStyle(host).getPropertyValue("--left")) || 54, r = window.devicePixelRatio || 1;
      sizes.set(host, { r, left, w: host.clientWidth, h: host.clientHeight, plot: Math.max(10, Math.round((host.clientWidth - left - RIGHT) * r)) });
    }
    font = getComputedStyle(document.body).fontFamily;
    dirty = true;
  }
  const plotWidth = (host) => sizes.get(host).plot;

  function open(host) {
    const size = sizes.get(host), r = size.r, w = Math.round(size.w * r), h = Math.round(size.h * r);
    if (host.width !== w || host.height !== h) { host.width = w; host.height = h; }
    const ctx = host.getContext("2d");
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.clearRect(0, 0, w, h);
    const g = { ctx, r, x0: Math.round(size.left * r), width: size.plot, y0: Math.round(TOP * r), height: Math.round((size.h - TOP - BOTTOM) * r) };
    geometry.set(host, g);
    return g;
  }

  function raster(edge) {
    const g = open(canvases.raster), { image, base, column_s } = models.tiles.data;
    const w = g.width, dt = models.span / w, cs = column_s[0], rows = models.height;
    if (image.length === 2 && g.height > 8) {
      const columns = image[0].length / rows;
      const levels = new Uint8Array(w * used);
      for (let i = 0; i < w; i++) {
        const p = edge - w + i;
        const first = Math.floor(p * dt / cs + 1e-6), until = Math.max(first + 1, Math.ceil((p + 1) * dt / cs - 1e-6));
        for (let c = Math.max(0, first); c < until; c++) {
          const n = Math.floor(c / columns), k = n % 2;
          if (base[k] !== n * columns) continue;
          const tile = image[k], at = c - n * columns;
          for (let row = 0; row < used; row++) {
            const level = tile[(rows - 1 - row) * columns + at];
            if (level > levels[row * w + i]) levels[row * w + i] = level;
          }
        }
      }
      const pixels = new ImageData(w, used), words = new Uint32Array(pixels.data.buffer);
      for (let i = 0; i < levels.length; i++) words[i] = look.palette[levels[i]];
      if (small.width !== w || small.height !== used) { small.width = w; small.height = used; }
      small.getContext("2d").putImageData(pixels, 0, 0);
      g.ctx.imageSmoothingEnabled = false;
      g.ctx.drawImage(small, 0, 0, w, used, g.x0, g.y0, w, g.height);
      g.ctx.fillStyle = look.panel;
      for (let row = 1; row < used; row++) g.ctx.fillRect(g.x0, Math.round(g.y0 + row * g.height / used), w, Math.max(1, Math.round(g.r)));
      if (hover && hover.row !== null) {
        g.ctx.strokeStyle = look.text;
        g.ctx.lineWidth = g.r;
        g.ctx.strokeRect(g.x0, Math.round(g.y0 + hover.row * g.height / used) + 0.5, w, Math.round(g.height / used));
      }
    }
    overlay(g, edge);
  }

  // boundaries of episodes, the time axis, the cursor and what is pointed at
  function overlay(g, edge) {
    const { ctx, r, x0, y0, width, height } = g, perS = width / models.span;
    const x = (t) => x0 + Math.round(t * perS) - (edge - width);
    const inside = (v) => v >= x0 && v <= x0 + width;
    const vertical = (t, style, dash, thick) => {
      const at = x(t);
      if (!inside(at)) return;
      ctx.strokeStyle = style;
      ctx.lineWidth = thick * r;
      ctx.setLineDash(dash.map((d) => d * r));
      ctx.beginPath();
      ctx.moveTo(at + 0.5, y0);
      ctx.lineTo(at + 0.5, y0 + height);
      ctx.stroke();
      ctx.setLineDash([]);
    };
    for (const t of place.boundaries) vertical(t, look.boundary, [3, 3], 1);
    if (hover) vertical(hover.t, look.muted, [], 1);
    if (!place.live) vertical(place.t, look.text, [], 2);
    const every = [1, 2, 5, 10, 15, 30].find((s) => s * perS / r >= 64) ?? 30;
    ctx.fillStyle = look.muted;
    ctx.font = `${11 * r}px ${font}`;
    ctx.textAlign = "center";
    ctx.textBaseline = "alphabetic";
    const start = (edge - width) / perS;
    for (let t = Math.ceil(start / every) * every; t <= start + models.span; t += every) {
      const at = x(t);
      if (at > x0 + 12 * r && at < x0 + width - 4 * r) ctx.fillText(clock(t), at, y0 + height + 17 * r);
    }
  }

  const clock = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;

  function nice(v) {
    const power = 10 ** Math.floor(Math.log10(v));
    return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((m) => m * power >= v * (1 - 1e-9)) * power;
  }

  // The range of a series widens in few steps and never narrows while its pair stays.
  function widen(j, low, high) {
    const now = ranges[j] ?? [0, 0];
    if (low >= now[0] && high <= now[1] && now[1] > now[0]) return;
    const feature = j % 2 === 0;
    const reach = Math.max(Math.abs(low), Math.abs(high), 1e-6);
    const top = feature ? nice(Math.max(high, 1e-6)) : nice(reach * 1.02);
    const bottom = low >= 0 ? 0 : feature ? -nice(-low) : -top;
    ranges[j] = [Math.min(bottom, now[0]), Math.max(top, now[1])];
  }

  // Bins of a series in sight: [x, mean, low, high], null where the line breaks.
  function bins(j, data, g, edge) {
    const perS = g.width / models.span, binPx = BIN * g.r, from = (edge - g.width) / perS - 1, t = data.t;
    const m = data["m" + j], l = data["l" + j], h = data["h" + j], found = [];
    let bin = null, lo = 0, hi = t.length;
    while (lo < hi) { const mid = (lo + hi) >> 1; if (t[mid] < from) lo = mid + 1; else hi = mid; }
    for (let i = lo; i < t.length; i++) {
      if (Number.isNaN(m[i])) { if (bin) found.push(bin); if (found.length && found.at(-1)) found.push(null); bin = null; continue; }
      const key = Math.floor(t[i] * perS / binPx);
      if (bin && bin.key === key) {
        bin.n += 1; bin.mean += m[i];
        if (l[i] < bin.low) bin.low = l[i];
        if (h[i] > bin.high) bin.high = h[i];
      } else {
        if (bin) found.push(bin);
        bin = { key, n: 1, mean: m[i], low: l[i], high: h[i], x: g.x0 + key * binPx - (edge - g.width) };
      }
    }
    if (bin) found.push(bin);
    return found;
  }

  function strips(edge) {
    const g = open(canvases.strips), data = models.strips.data, { ctx, r } = g, each = g.height / 4;
    if (g.height < 40) return;
    ctx.save();
    ctx.beginPath();
    ctx.rect(g.x0, 0, g.width, g.y0 + g.height);
    ctx.clip();
    pairs.forEach((pair, i) => {
      if (!pair) return;
      const top = g.y0 + each * (i + BAND[0]), bottom = g.y0 + each * (i + BAND[1]);
      for (const j of pair.metric ? [2 * i, 2 * i + 1] : [2 * i]) {
        const found = bins(j, data, g, edge);
        for (const b of found) if (b) widen(j, j % 2 ? b.low : Math.min(0, b.low), b.high);
        const range = ranges[j];
        if (!range) continue;
        const y = (v) => bottom - (v - range[0]) / (range[1] - range[0]) * (bottom - top);
        if (j % 2 === 0) area(ctx, found, y, r); else line(ctx, found, y, r);
      }
    });
    ctx.restore();
    ctx.fillStyle = look.muted;
    ctx.font = `${10 * r}px ${font}`;
    pairs.forEach((pair, i) => {
      if (!pair) return;
      const top = g.y0 + each * (i + BAND[0]), bottom = g.y0 + each * (i + BAND[1]);
      for (const j of pair.metric ? [2 * i, 2 * i + 1] : [2 * i]) {
        if (!ranges[j]) continue;
        const [low, high] = ranges[j];
        ctx.textAlign = j % 2 ? "left" : "right";
        ctx.textBaseline = "middle";
        const x = j % 2 ? g.x0 + g.width + 6 * r : g.x0 - 6 * r;
        for (const v of low < 0 && high > 0 ? [low, 0, high] : [low, high]) {
          ctx.fillText(String(+v.toPrecision(2)).replace("-", "−"), x, bottom - (v - low) / (high - low) * (bottom - top));
        }
      }
    });
    overlay(g, edge);
  }

  function area(ctx, found, y, r) {
    const zero = y(0), wide = BIN * r;
    for (const [part, alpha] of [["high", 0.28], ["mean", 0.6]]) {
      ctx.beginPath();
      found.forEach((b, i) => {
        if (!b) return;
        const value = part === "high" && b.low < 0 && -b.low > b.high ? b.low : part === "mean" ? b.mean / b.n : b.high;
        const next = found[i + 1];
        ctx.rect(b.x, Math.min(zero, y(value)), (next ? next.x - b.x : wide), Math.abs(zero - y(value)));
      });
      ctx.globalAlpha = alpha;
      ctx.fillStyle = look.feature;
      ctx.fill();
    }
    ctx.globalAlpha = 1;
  }

  function line(ctx, found, y, r) {
    const half = BIN * r / 2;
    let run = [];
    const close = () => {
      if (run.length) {
        ctx.globalAlpha = 0.3;
        ctx.fillStyle = look.metric;
        ctx.beginPath();
        run.forEach((b, i) => (i ? ctx.lineTo(b.x + half, y(b.high)) : ctx.moveTo(b.x + half, y(b.high))));
        for (let i = run.length - 1; i >= 0; i--) ctx.lineTo(run[i].x + half, y(run[i].low));
        ctx.fill();
        ctx.globalAlpha = 1;
        ctx.strokeStyle = look.metric;
        ctx.lineWidth = 1.25 * r;
        ctx.beginPath();
        run.forEach((b, i) => (i ? ctx.lineTo(b.x + half, y(b.mean / b.n)) : ctx.moveTo(b.x + half, y(b.mean / b.n))));
        if (run.length === 1) ctx.lineTo(run[0].x + half + r, y(run[0].mean / run[0].n));
        ctx.stroke();
      }
      run = [];
    };
    for (const b of found) if (b) run.push(b); else close();
    close();
  }

  function timeAt(event, host) {
    const g = geometry.get(host);
    if (!g || painted < 0) return null;
    const at = event.offsetX * g.r - g.x0;
    return at < 0 || at > g.width ? null : (painted - g.width + at) * models.span / g.width;
  }

  function hovered(event, name) {
    const host = canvases[name], g = geometry.get(host), t = timeAt(event, host);
    if (t === null) { hover = null; tip(null); dirty = true; return; }
    const row = name === "raster" ? Math.floor((event.offsetY * g.r - g.y0) / g.height * used) : null;
    hover = { t, row: row !== null && row >= 0 && row < used ? row : null };
    dirty = true;
    const said = hover.row === null ? null : window.ilive.row(hover.row);
    tip(event, said ? [`${said.name}${said.said ? " · " + said.said.label : ""}`, `at ${clock(t)}, active in ${said.duty} of frames`, said.said ? said.said.about : ""] : [`at ${clock(t)}`]);
  }

  function tip(event, lines) {
    const box = document.querySelector(".tip");
    box.hidden = !event;
    if (!event) return;
    box.textContent = lines.filter(Boolean).join("\n");
    box.style.left = `${Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8)}px`;
    box.style.top = `${Math.min(event.clientY + 16, innerHeight - box.offsetHeight - 60)}px`;
  }

  return {
    ready, frames, colours, stats, tip, clock,
    place: (p) => { if (p.live && !place.live) shown = newest; place = p; dirty = true; },
    rows: (count) => { used = Math.max(count, 8); resized(); },
    pairs: (list) => {
      const key = JSON.stringify(list.map((p) => p && [p.feature, p.metric]));
      if (key !== pairsKey) { pairsKey = key; ranges = []; }
      pairs = list;
      dirty = true;
    },
    gone: () => { newest = null; },
  };
})();
