"use strict";
// Raster and strips, painted from Bokeh's sources onto canvases of our own. Time is laid on a fixed grid of pixels, so a column
// never changes its look while it moves; a repaint happens when the window has moved by a pixel or something new has come.
window.idraw = (() => {
  const RIGHT = 58, TOP = 4, BOTTOM = 24, BIN = 2;   // CSS px; BIN: pixels in a bin of the strips
  const BANDS = [["episode", 15], ["remarks", 12], ["alarms", 12]], BANDS_H = 44;   // above the strips, CSS px
  const TITLE = 18, BESIDE = 180;                     // of a strip, CSS px; with so much room at the left, its title stands there
  const HAND = 0.05;                                  // s that the picture is kept behind what is known, so that it glides
  let models = null, look = null, place = { live: true, boundaries: [], t: null };
  let used = 8, pairs = [], ranges = new Map();
  let dirty = true, painted = -1, hover = null, preview = null;       // hover: {t, row}
  let newest = null, shown = null, last = 0;          // frame time of the newest frame and of the window's right edge, s
  let played = null;                                  // what playback shows between two messages: {t, end}
  let known = { t: [], v: [] };                       // rows of the strips: times, and columns of mean, least, most
  let ring = { levels: new Uint8Array(0), columns: 1, first: 0, head: -1, column_s: 1 };   // the raster's columns by number
  let clock0 = Infinity;                              // ms between this clock and the server's, the quickest message
  const ages = [];                                    // ms from a frame's making to its being drawn here, the last thousand
  const canvases = {};
  const small = document.createElement("canvas");
  const stats = { paints: 0, paint_ms: 0, looks: 0, first: null };   // first: ms from opening the page to the first picture of frames

  let hatch = null;   // the pattern of time without frames
  function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

  function colours(glyphs) {
    const palette = new Uint32Array(256);
    glyphs("ramp").forEach((c, i) => {
      const n = parseInt(c.slice(1, 7), 16);
      palette[i] = i === 0 ? 0 : (0xff000000 | ((n & 255) << 16) | (n & 0xff00) | (n >> 16)) >>> 0;
    });
    hatch = null;
    look = { bad: css("--bad"), shade: css("--idle-bg"), palette, feature: glyphs("feature"), metric: glyphs("metric"), boundary: glyphs("boundary"), panel: css("--panel"), muted: css("--muted"), line: css("--line"), text: css("--text") };
    dirty = true;
  }

  function ready(args) {
    models = args;
    for (const name of ["raster", "strips"]) {
      const host = document.querySelector(`[data-canvas=${name}]`);
      canvases[name] = host;
      new ResizeObserver(resized).observe(host);
      host.addEventListener("pointermove", (e) => hovered(e, name));
      host.addEventListener("pointerenter", () => window.itime.send({ op: "hold", on: true }));
      host.addEventListener("pointerleave", () => { hover = null; tip(null); dirty = true; window.itime.send({ op: "hold", on: false }); });
      host.addEventListener("click", (e) => { const t = timeAt(e, host); if (t !== null) window.itime.send({ op: "time", to: t }); const said = hover?.row == null ? null : window.ilive.row(hover.row); if (said && window.itokens.active()) window.itokens.shade(said.feature); });
    }
    resized();
    requestAnimationFrame(step);
  }

  // New rows and columns behind those known, or all of another drawing; and where the cursor is.
  function frames(source) {
    const d = source.data, m = JSON.parse(d.json[0] || "{}");
    if (m.n === undefined || !d.bytes[0]) return;
    const b = d.bytes[0], whole = b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength), wide = m.series * 3, rows = models.height;
    const t = new Float64Array(whole, 0, m.lines), v = new Float32Array(whole, 8 * m.lines, m.lines * wide), tile = new Uint8Array(whole, 8 * m.lines + 4 * m.lines * wide);
    if (m.fresh) {
      known = { t: [], v: Array.from({ length: wide }, () => []) };
      ring = { levels: new Uint8Array(rows * m.columns), columns: m.columns, first: m.first, head: m.first - 1, column_s: m.column_s };
    }
    for (let i = 0; i < t.length; i++) {
      known.t.push(t[i]);
      for (let k = 0; k < wide; k++) known.v[k].push(v[i * wide + k]);
    }
    if (known.t.length > 1.5 * m.limit) {
      const gone = known.t.length - m.limit;
      known.t.splice(0, gone);
      known.v.forEach((column) => column.splice(0, gone));
    }
    const count = m.count;
    for (let c = 0; c < count; c++) {
      const at = (m.first + c) % ring.columns;
      for (let row = 0; row < rows; row++) ring.levels[row * ring.columns + at] = tile[row * count + c];
    }
    if (count) ring.head = m.first + count - 1;
    if (m.fresh && tile.some((level) => level)) while (!Array.from({ length: rows }, (_, row) => tile[row * count + ring.first - m.first]).some((level) => level)) ring.first += 1;   // what was before the first frame is no gap
    clock0 = Math.min(clock0, Date.now() - m.now);
    const before = place;
    place = m;
    newest = m.live ? m.t : null;
    if (m.live && (!before.live || shown === null || Math.abs(newest - shown) > 5)) shown = newest;
    if (!m.playing || !played || Math.abs(m.t - played.t) > 2 * m.speed) played = { t: m.t, end: m.end };
    dirty = true;
  }

  // Towards a value at the speed of time, a little faster the further behind.
  const glide = (from, to, dt, speed) => Math.min(to, from + dt * speed * Math.max(0, 1 + 3 * ((to - from) / speed - HAND)));

  function step(now) {
    setTimeout(() => requestAnimationFrame(step), 12);   // the picture moves by a pixel about every 40 ms: no need to look oftener
    if (document.hidden || !look || place.n === undefined) return;
    const dt = Math.min(0.5, (now - last) / 1000);
    last = now;
    stats.looks += 1;
    if (place.live && newest !== null) {
      if (shown === null) shown = newest;
      shown = glide(shown, newest, dt, 1);
    } else if (place.playing && played) {
      played = { t: glide(played.t, place.t, dt, place.speed), end: glide(Math.min(played.end, place.end), place.end, dt, place.speed) };
      dirty = true;
    }
    const end = place.live ? Math.max(shown ?? 0, models.span) : place.playing ? played.end : place.end;
    const width = plotWidth(canvases.raster);
    const edge = Math.floor(end * width / models.span);
    if (!dirty && edge === painted) return;
    dirty = false;
    painted = edge;
    const began = performance.now();
    raster(edge);
    strips(edge);
    stats.paints += 1;
    if (ring.head >= 0) stats.first ??= performance.now();
    stats.paint_ms += performance.now() - began;
    if (place.live && newest !== null && document.body.dataset.state === "LIVE") {
      ages.push(Date.now() - clock0 - place.wall + 1e3 * Math.max(0, newest - shown));
      if (ages.length > 1000) ages.shift();
    }
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

  function missing(ctx, r) {
    if (hatch) return hatch;
    const tile = document.createElement("canvas"), size = Math.round(6 * r);
    tile.width = tile.height = size;
    const pen = tile.getContext("2d");
    pen.strokeStyle = look.boundary;
    pen.globalAlpha = 0.45;
    pen.lineWidth = r;
    pen.beginPath();
    for (const d of [-size, 0, size]) { pen.moveTo(d, size); pen.lineTo(d + size, 0); }
    pen.stroke();
    hatch = ctx.createPattern(tile, "repeat");
    return hatch;
  }

  function raster(edge) {
    const g = open(canvases.raster), w = g.width, dt = models.span / w, cs = ring.column_s, rows = models.height;
    if (ring.head >= 0 && g.height > 8) {
      const oldest = Math.max(ring.first, ring.head - ring.columns + 1), gaps = [];
      const levels = new Uint8Array(w * used);
      for (let i = 0; i < w; i++) {
        const p = edge - w + i;
        const first = Math.floor(p * dt / cs + 1e-6), until = Math.max(first + 1, Math.ceil((p + 1) * dt / cs - 1e-6));
        let some = false;
        for (let c = Math.max(oldest, first); c < until && c <= ring.head; c++) {
          const at = c % ring.columns;
          for (let row = 0; row < used; row++) {
            const level = ring.levels[(rows - 1 - row) * ring.columns + at];
            if (level) some = true;
            if (level > levels[row * w + i]) levels[row * w + i] = level;
          }
        }
        if (!some && until > oldest && until - 1 <= ring.head) {
          if (gaps.length && gaps.at(-1)[1] === i) gaps.at(-1)[1] = i + 1; else gaps.push([i, i + 1]);
        }
      }
      const pixels = new ImageData(w, used), words = new Uint32Array(pixels.data.buffer);
      for (let i = 0; i < levels.length; i++) words[i] = look.palette[levels[i]];
      if (small.width !== w || small.height !== used) { small.width = w; small.height = used; }
      small.getContext("2d").putImageData(pixels, 0, 0);
      g.ctx.imageSmoothingEnabled = false;
      g.ctx.drawImage(small, 0, 0, w, used, g.x0, g.y0, w, g.height);
      g.ctx.fillStyle = missing(g.ctx, g.r);
      for (const [from, to] of gaps) g.ctx.fillRect(g.x0 + from, g.y0, to - from, g.height);
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
    if (preview !== null) vertical(preview, look.metric, [2, 2], 2);
    if (!place.live) vertical(place.playing ? played.t : place.t, look.text, [], 2);
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

  const clock = (s, fine) => (s >= 3600 ? `${Math.floor(s / 3600)}:${String(Math.floor(s / 60) % 60).padStart(2, "0")}` : `${Math.floor(s / 60)}`) +
    ":" + (fine ? (s % 60).toFixed(2).padStart(5, "0") : String(Math.floor(s % 60)).padStart(2, "0"));

  function nice(v) {
    const power = 10 ** Math.floor(Math.log10(v));
    return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((m) => m * power >= v * (1 - 1e-9)) * power;
  }

  // The range of a series widens in few steps and never narrows while its pair stays.
  function widen(key, feature, low, high) {
    const now = ranges.get(key) ?? [0, 0];
    if (low >= now[0] && high <= now[1] && now[1] > now[0]) return;
    const reach = Math.max(Math.abs(low), Math.abs(high), 1e-6);
    const top = feature ? nice(Math.max(high, 1e-6)) : nice(reach * 1.02);
    const bottom = low >= 0 ? 0 : feature ? -nice(-low) : -top;
    ranges.set(key, [Math.min(bottom, now[0]), Math.max(top, now[1])]);
  }

  // Bins of a series in sight: [x, mean, low, high], null where the line breaks.
  function bins(j, g, edge) {
    const perS = g.width / models.span, binPx = BIN * g.r, from = (edge - g.width) / perS - 1, t = known.t;
    const m = known.v[3 * j], l = known.v[3 * j + 1], h = known.v[3 * j + 2], found = [];
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

  const series = (pair, i) => [...(pair.feature ? [[2 * i, true]] : []), ...(pair.metric ? [[2 * i + 1, false]] : [])];
  const keyOf = (pair, feature) => (feature ? "f" + pair.key[0] : "m" + pair.key[1]);

  function strips(edge) {
    const g = open(canvases.strips), { ctx, r } = g, y0 = g.y0 + BANDS_H * r, each = (g.height - BANDS_H * r) / Math.max(1, pairs.length);
    if (g.height < 90) return;
    const edges = pairs.map((_, i) => [y0 + each * i + (sizes.get(canvases.strips).left < BESIDE ? TITLE : 5) * r, y0 + each * (i + 1) - 5 * r]);
    ctx.save();
    ctx.beginPath();
    ctx.rect(g.x0, 0, g.width, g.y0 + g.height);
    ctx.clip();
    pairs.forEach((pair, i) => {
      const [top, bottom] = edges[i];
      for (const [j, feature] of series(pair, i)) {
        if (3 * j + 2 >= known.v.length) continue;
        const found = bins(j, g, edge), key = keyOf(pair, feature);
        for (const b of found) if (b) widen(key, feature, feature ? Math.min(0, b.low) : b.low, b.high);
        const range = ranges.get(key);
        if (!range) continue;
        const y = (v) => bottom - (v - range[0]) / (range[1] - range[0]) * (bottom - top);
        if (feature) area(ctx, found, y, r); else line(ctx, found, y, r);
      }
    });
    ctx.restore();
    ctx.font = `${10 * r}px ${font}`;
    pairs.forEach((pair, i) => {
      const [top, bottom] = edges[i];
      for (const [, feature] of series(pair, i)) {
        const range = ranges.get(keyOf(pair, feature));
        if (!range) continue;
        const [low, high] = range, x = feature ? g.x0 - 6 * r : g.x0 + g.width + 6 * r;
        ctx.textAlign = feature ? "right" : "left";
        ctx.textBaseline = "middle";
        ctx.fillStyle = look.muted;
        for (const v of low < 0 && high > 0 && bottom - top > 34 * r ? [low, 0, high] : [low, high]) {
          ctx.fillText(String(+v.toPrecision(2)).replace("-", "−"), x, bottom - (v - low) / (high - low) * (bottom - top));
        }
      }
    });
    overlay(g, edge);
    bands(g, edge);
  }

  // Episodes, what was remarked, alarms and interventions, above the strips and on their time.
  function bands(g, edge) {
    const { ctx, r, x0, width } = g, perS = width / models.span, all = window.itime.data();
    const x = (t) => Math.max(x0, Math.min(x0 + width, x0 + Math.round(t * perS) - (edge - width)));
    ctx.clearRect(x0, g.y0, width, (BANDS_H - 3) * r);
    ctx.textBaseline = "middle";
    let y = g.y0;
    BANDS.forEach(([name, tall]) => {
      ctx.fillStyle = look.muted;
      ctx.font = `${10 * r}px ${font}`;
      ctx.textAlign = "right";
      ctx.fillText(name, x0 - 6 * r, y + tall * r / 2);
      ctx.fillStyle = look.shade;
      ctx.globalAlpha = 0.6;
      ctx.fillRect(x0, y, width, (tall - 2) * r);
      ctx.globalAlpha = 1;
      y += tall * r;
    });
    if (!all) return;
    const until = edge / perS, from = until - models.span, inside = (a, b) => b >= from && a <= until;
    ctx.textAlign = "left";
    const episodes = all.episodes.filter((e) => inside(e[6], e[7] ?? until)), end = Math.min(until, place.live ? shown ?? until : ring.head * ring.column_s);
    episodes.forEach(([, , number, , , , a, b], k) => {
      const left = x(a), right = x(b ?? (k === episodes.length - 1 ? end : episodes[k + 1][6]));
      ctx.fillStyle = look.boundary;
      ctx.globalAlpha = number % 2 ? 0.22 : 0.4;
      ctx.fillRect(left, g.y0, Math.max(r, right - left - r), 13 * r);
      ctx.globalAlpha = 1;
      ctx.fillStyle = look.text;
      if (right - left > 26 * r) ctx.fillText(String(number), left + 5 * r, g.y0 + 7 * r);
    });
    ctx.fillStyle = look.metric;
    for (const [, , , t] of all.marks) if (inside(t, t)) { ctx.beginPath(); ctx.arc(x(t), g.y0 + 20 * r, 3.2 * r, 0, 7); ctx.fill(); }
    const low = g.y0 + 27 * r;
    ctx.fillStyle = look.bad;
    for (const [, , , a, b] of all.alarms) if (inside(a, b)) ctx.fillRect(x(a), low, Math.max(4 * r, x(b) - x(a)), 10 * r);
    ctx.fillStyle = missing(ctx, r);
    for (const [, , , a, b] of all.gaps) if (inside(a, b)) ctx.fillRect(x(a), g.y0, Math.max(2 * r, x(b) - x(a)), 39 * r);
    ctx.strokeStyle = ctx.fillStyle = look.feature;
    ctx.lineWidth = 1.5 * r;
    ctx.font = `600 ${9 * r}px ${font}`;
    for (const [, , , a, b, shadow] of all.interventions) {   // what acts is filled, what only measures is dashed; those in force end at the newest frame
      if (!inside(a, b ?? until)) continue;
      const left = x(a), wide = Math.max(4 * r, x(b ?? end) - left), word = shadow ? "shadow" : "steered";
      ctx.setLineDash(shadow ? [3 * r, 2 * r] : []);
      ctx.globalAlpha = 0.3;
      if (!shadow) ctx.fillRect(left, low, wide, 10 * r);
      ctx.globalAlpha = 1;
      ctx.strokeRect(left, low + r, wide, 8 * r);
      ctx.fillStyle = look.text;
      if (wide > ctx.measureText(word).width + 8 * r) ctx.fillText(word, left + 4 * r, low + 5.5 * r);
      ctx.fillStyle = look.feature;
    }
    ctx.setLineDash([]);
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
    const said = hover.row === null ? null : window.ilive.row(hover.row), lines = [`at ${clock(t, true)}`];
    if (said) lines.unshift(`${said.name}${said.said ? " · " + said.said.label : ""}`);
    if (said) lines.push(`active in ${said.duty} of frames`, said.said ? said.said.about : "");
    if (name === "strips") lines.push(...window.itime.about(t, models.span / g.width * 5 * g.r), ...values(event, g, t));
    tip(event, lines);
  }

  // What the strip under the pointer shows at a time.
  function values(event, g, t) {
    const each = (g.height / g.r - BANDS_H) / Math.max(1, pairs.length), i = Math.floor((event.offsetY - TOP - BANDS_H) / each), pair = pairs[i];
    if (!pair || event.offsetY < TOP + BANDS_H) return [];
    let at = 0;
    for (let lo = 0, hi = known.t.length; lo < hi;) { const mid = (lo + hi) >> 1; if (known.t[mid] < t) { lo = mid + 1; at = lo; } else { hi = mid; at = mid; } }
    return series(pair, i).map(([j, feature]) => {
      const v = known.v[3 * j]?.[Math.min(at, known.t.length - 1)];
      return `${feature ? pair.feature : pair.metric}: ${v === undefined || Number.isNaN(v) ? "no frame" : +v.toPrecision(3) + (feature || !pair.unit ? "" : " " + pair.unit)}`;
    });
  }

  function tip(event, lines) {
    const box = document.querySelector(".tip");
    box.hidden = !event;
    if (!event) return;
    box.textContent = lines.filter(Boolean).join("\n");
    box.style.left = `${Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8)}px`;
    box.style.top = `${Math.min(event.clientY + 16, innerHeight - box.offsetHeight - 60)}px`;
  }

  // Of the last `many`; null before there are enough.
  function quantile(q, many = 1000) {
    const last = ages.slice(-many).sort((a, b) => a - b);
    return last.length < 20 ? null : last[Math.min(last.length - 1, Math.floor(last.length * q))];
  }

  return {
    ready, frames, colours, stats, tip, clock, ages, quantile, timeAt,
    age: () => (place.live && newest !== null && ages.length ? Date.now() - clock0 - place.wall : null),
    rows: (count) => { used = Math.max(count, 8); resized(); },
    pairs: (list) => { pairs = list; dirty = true; },
    preview: (t) => { preview = t; dirty = true; },
    repaint: () => { dirty = true; },
    gone: () => { newest = null; },
    shot: (name) => ({ canvas: canvases[name], left: (sizes.get(canvases[name]) ?? {}).left, span: place.live ? shown : place.end }),
  };
})();
