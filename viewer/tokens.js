"use strict";
// A language model's text: tokens shaded by a feature, what is known of the one at the cursor, a strip of tap points, the list of
// prompts. Everything a run or a model wrote goes in by textContent.
window.itokens = (() => {
  const { node, signed, visible } = window.imake;
  const ROW = 15, MIN = 3, MAX = 13;                  // CSS px: height of a row of the strip, narrowest and widest token in it
  const [SEQ, TEXT, KIND, LOGPROB, ENTROPY, VALUE, TOP, NEXT, ID, KNOWN] = Array(10).keys();
  const q = (query) => document.querySelector(query);
  let shown = null, tokens = [], strips = [], spans = [], cursor = -1, live = true, seq = -1, pointed = false;
  let list = [], dirty = false, view = { first: 0, cell: MAX, count: 0 };

  const called = (feature) => `${shown.letter}${feature}`;
  const label = (feature) => shown.labels[feature] ?? "";
  const percent = (p) => (p >= 0.01 ? `${Math.round(100 * p)}\u202f%` : p >= 0.001 ? `${(100 * p).toFixed(1)}\u202f%` : "<\u202f0.1\u202f%");
  const quoted = (t) => (t[KIND] & 1 ? t[TEXT] : `“${visible(t[TEXT])}”`);

  function ready() {
    const text = q(".written");
    text.addEventListener("pointerover", (e) => { const i = index(e.target); tip(i === null ? null : e, i); });
    text.addEventListener("pointerenter", () => { pointed = true; });
    text.addEventListener("pointerleave", () => { pointed = false; tip(null); });
    text.addEventListener("click", (e) => { const i = index(e.target); if (i !== null && getSelection().isCollapsed) go(i); });
    const strip = q("[data-canvas=layers]");
    strip.addEventListener("pointermove", (e) => { const at = cell(e); tip(at ? e : null, at?.i, at?.row); });
    strip.addEventListener("pointerleave", () => tip(null));
    strip.addEventListener("click", (e) => { const at = cell(e); if (at) go(at.i); });
    new ResizeObserver(repaint).observe(strip.parentElement);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
    q(".reads .reset").addEventListener("click", () => choose(null));
    q("#prompt-search").addEventListener("input", prompted);
  }

  const go = (i) => window.itime.seek(tokens[i][SEQ]);
  const index = (element) => { const at = element.closest?.("[data-i]"); return at ? Number(at.dataset.i) : null; };
  const choose = (feature) => window.itime.send({ op: "shade", feature: shown && feature === shown.chosen ? null : feature });

  const by = (feature) => window.itime.send({ op: "shade", feature });

  // Of a language model an episode is a text, a step a token, and a frame too.
  const WORDS = [[/\bepisodes\b/g, "texts"], [/\bEpisodes\b/g, "Texts"], [/\bepisode\b/g, "text"], [/\bEpisode\b/g, "Text"], [/\bsteps\b/g, "tokens"], [/\bSteps of the agent\b/g, "Tokens that the model read"], [/\ba step\b/g, "a token"], [/\bstep\b/g, "token"], [/\bframes\b/g, "tokens"], [/\bframe\b/g, "token"], [/\bthe agent\b/g, "the model"]];
  const words = (text) => (document.body.dataset.language === "yes" ? WORDS.reduce((said, [from, to]) => said.replace(from, to), text) : text);

  // The page's own words, once: nothing of a run's is among them.
  function reword() {
    const own = "header [title], footer.time [title], footer.time [aria-label], .head [title], #panel-features [title]";
    for (const e of document.querySelectorAll(own)) for (const name of ["title", "aria-label"]) if (e.hasAttribute(name)) e.setAttribute(name, words(e.getAttribute(name)));
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT, (t) => (t.parentElement.closest(".thinks .legend, .ask .sub, #use-episode, #keys dd, .ask form label, #panel-goes .legend, #panel-health h3, .strips h2") ? NodeFilter.FILTER_ACCEPT : NodeFilter.FILTER_SKIP));
    while (walker.nextNode()) { const said = words(walker.currentNode.data); if (said !== walker.currentNode.data) walker.currentNode.data = said; }
    for (const e of document.querySelectorAll("#span-a, #span-b")) e.setAttribute("aria-label", words(e.getAttribute("aria-label")));
  }

  // New tokens behind those shown, or all of another text or another feature.
  function show(source) {
    const m = JSON.parse(source.data.json[0]);
    if (document.body.dataset.language !== "yes") { document.body.dataset.language = "yes"; reword(); }
    const before = shown, labels = m.fresh || !shown ? m.labels : { ...shown.labels, ...m.labels };
    shown = { ...m, labels };
    if (m.fresh) { tokens = []; strips = m.points.map(() => []); spans = []; cursor = -1; }
    const host = q(".written"), first = tokens.length;
    tokens.push(...m.tokens);
    m.strips.forEach((values, row) => strips[row].push(...values));
    const made = m.tokens.map((t, k) => span(t, first + k));
    spans.push(...made);
    if (m.fresh) { host.replaceChildren(...made); host.scrollTop = 0; } else host.append(...made);
    if (m.fresh || before.scale !== m.scale) spans.forEach((s, i) => shade(s, tokens[i]));
    else made.forEach((s, k) => shade(s, tokens[first + k]));
    heading();
    if (m.fresh) points();
    place(true);
    mark();
    prompts_mark();
  }

  function span(t, i) {
    const made = node("span", t[KIND] & 1 ? "special" : t[KIND] & 2 ? "own" : "given");
    made.dataset.i = i;
    const text = t[TEXT];
    if (t[KIND] & 1) made.textContent = text || "special";
    else if (text === "") { made.textContent = "·"; made.classList.add("part"); }
    else made.textContent = text.replaceAll("\n", "↵\n");
    return made;
  }

  function shade(s, t) {
    const v = t[VALUE], share = v === null ? 0 : Math.min(1, Math.abs(v) / shown.scale);
    s.classList.toggle("down", v !== null && v < 0 && share >= 0.02);
    s.style.setProperty("--a", share < 0.02 ? "0" : (0.06 + 0.56 * share).toFixed(2));
  }

  function heading() {
    const p = shown.prompt, by = q(".reads .by");
    q(".reads .which").textContent = `prompt ${p.prompt} · ${p.given} given${p.written ? `, ${p.written} written` : ""}${shown.before ? ` · from token ${shown.before + 1}` : ""}`;
    q(".reads .tags").replaceChildren(...p.labels.map(([name, value]) => node("span", "tag", `${name} ${value}`)));
    if (window.ipairs.active()) return;   // whose legend stands there
    by.textContent = shown.chosen === null ? "each token’s strongest feature" : [called(shown.chosen), label(shown.chosen)].filter(Boolean).join(" ");
    q(".reads .reset").hidden = shown.chosen === null;
    q(".reads .most").textContent = signed(shown.scale, 2);
    q(".reads .least").textContent = tokens.some((t) => t[VALUE] !== null && t[VALUE] < 0) ? signed(-shown.scale, 2) : "0";
    q(".reads").classList.toggle("both", tokens.some((t) => t[VALUE] !== null && t[VALUE] < 0));
  }

  // The cursor: its token is marked, what comes after it is not yet written.
  function moved(p) {
    live = p.live;
    seq = p.live ? p.newest : p.seq;
    place(false);
  }

  function place(anew) {
    if (!shown || !tokens.length) return;
    let low = 0, high = tokens.length;
    while (low < high) { const mid = (low + high) >> 1; if (tokens[mid][SEQ] <= seq) low = mid + 1; else high = mid; }
    const at = Math.max(0, live ? tokens.length - 1 : low - 1);
    if (at === cursor && !anew) return;
    spans[cursor]?.classList.remove("at");
    spans[cursor]?.removeAttribute("aria-current");
    const from = anew || cursor < 0 ? 0 : Math.min(at, cursor), to = anew || cursor < 0 ? spans.length : Math.max(at, cursor) + 1;
    for (let i = from; i < to; i++) spans[i].classList.toggle("later", i > at);
    cursor = at;
    spans[at].classList.add("at");
    spans[at].setAttribute("aria-current", "true");
    keep(spans[at]);
    facts(tokens[at], at);
    repaint();
  }

  function keep(s) {
    const host = q(".written");
    if (pointed) return;
    const top = s.offsetTop - host.offsetTop, room = host.clientHeight;
    if (top < host.scrollTop || top + s.offsetHeight > host.scrollTop + room) host.scrollTop = Math.max(0, top - room * 0.6);
  }

  function kind(t) {
    return [t[KIND] & 1 ? "special token: left out of features" : "", t[KIND] & 2 ? "written by the model" : "given"].filter(Boolean).join(", ");
  }

  function facts(t, i) {
    const set = (name, value) => { const e = q(`[data-token=${name}]`); if (e.textContent !== value) e.textContent = value; };
    set("text", quoted(t));
    set("kind", kind(t));
    set("position", String(shown.before + i));
    set("id", String(t[ID]));
    set("logprob", t[LOGPROB] === null ? "–" : `${signed(t[LOGPROB])}\u202fnat`);
    set("share", t[LOGPROB] === null ? "–" : percent(Math.exp(t[LOGPROB])));
    set("entropy", t[ENTROPY] === null ? "–" : `${signed(t[ENTROPY])}\u202fnat`);
    const host = q(".tops"), focused = document.activeElement?.dataset?.feature, most = Math.max(shown.scale, ...t[TOP].map(([, v]) => Math.abs(v)));
    host.replaceChildren(...t[TOP].map(([feature, value]) => {
      const item = node("li"), name = node("button", "n");
      name.dataset.feature = feature;
      name.setAttribute("aria-pressed", String(feature === shown.chosen));
      name.title = "Shade the text by this feature; again: by each token’s strongest";
      name.append(node("b", "", called(feature)), node("span", "l", label(feature)));
      name.addEventListener("click", () => choose(feature));
      item.append(name, bar(Math.abs(value) / most, value < 0), node("span", "v", signed(value)));
      return item;
    }));
    if (focused !== undefined) host.querySelector(`[data-feature="${focused}"]`)?.focus();
    q(".tops-none").textContent = t[TOP].length ? "" : t[KNOWN] ? "No feature is active here." : t[KIND] & 1 ? "Special tokens are left out of features." : "Not known of this token.";
    q(".nexts").replaceChildren(...t[NEXT].map(([text, p]) => {
      const item = node("li"), next = tokens[i + 1];
      item.append(node("span", "n", `“${visible(text)}”`), bar(p, false), node("span", "v", percent(p)));
      if (next && next[TEXT] === text) { item.classList.add("came"); item.firstChild.append(node("small", "", "came")); }
      return item;
    }));
    q(".nexts-none").textContent = t[NEXT].length ? "" : "Not known of this token.";
  }

  function bar(share, minus) {
    const track = node("i", "bar"), fill = node("i", minus ? "minus" : "plus");
    fill.style.width = `${(100 * Math.min(1, share)).toFixed(1)}%`;
    track.setAttribute("aria-hidden", "true");
    track.append(fill);
    return track;
  }

  function tip(event, i, row) {
    if (!event || i === undefined || i === null || !tokens[i]) { window.idraw.tip(null); return; }
    const t = tokens[i], lines = [`${quoted(t)} · token ${shown.before + i}, ${kind(t)}`];
    if (t[LOGPROB] !== null) lines.push(`log-probability ${signed(t[LOGPROB])} nat (${percent(Math.exp(t[LOGPROB]))})`);
    if (row !== undefined) {
      const v = strips[row][i], p = shown.points[row];
      lines.push(`${p.name}: ${p.shown && shown.chosen !== null ? called(shown.chosen) : "strongest"} ${v === null ? "not known" : signed(v)}`);
    }
    if (shown.chosen !== null) lines.push(`${called(shown.chosen)} ${label(shown.chosen)}: ${t[VALUE] === null ? "not known" : signed(t[VALUE])}`);
    for (const [feature, value] of t[TOP]) if (feature !== shown.chosen) lines.push(`${called(feature)} ${label(feature)} ${signed(value)}`);
    window.idraw.tip(event, lines);
  }

  // Which rows of the raster shade: the chosen one is marked.
  function mark() {
    if (!shown) return;
    for (const button of document.querySelectorAll(".rows .n")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.row) === shown.chosen));
      button.title = button.title.replace(/(Click to pin|Pin) or unpin/, "Shade the text by it");
    }
  }

  // Tap points at the left of the strip; a click shows the features of another.
  function points() {
    const host = q(".points"), list = shown.points, strip = q(".layers");
    strip.style.setProperty("--rows", list.length);
    host.replaceChildren(...list.map((p) => {
      const item = node("li"), name = node("button", "n", p.point.replace(/^.*layers\./, "").replace(/^transformer\.h\./, ""));
      name.setAttribute("aria-pressed", String(p.shown));
      name.title = p.shown ? `${p.name}: shown` : `Look at ${p.name}`;
      name.addEventListener("click", () => window.itime.send({ op: "look", source: p.key }));
      item.append(name);
      return item;
    }));
    q(".layers-note").textContent = shown.more ? `${shown.more} more tap points are not shown` : "";
  }

  function repaint() {
    if (dirty) return;
    dirty = true;
    requestAnimationFrame(() => { dirty = false; paint(); });
  }

  function paint() {
    const host = q("[data-canvas=layers]");
    if (!shown || !host.clientWidth) return;
    const r = window.devicePixelRatio || 1, w = host.clientWidth, rows = shown.points.length, css = getComputedStyle(document.documentElement);
    const up = css.getPropertyValue("--up"), down = css.getPropertyValue("--down"), text = css.getPropertyValue("--text"), line = css.getPropertyValue("--line");
    host.width = Math.round(w * r);
    host.height = Math.round(rows * ROW * r);
    const size = Math.max(MIN, Math.min(MAX, w / Math.max(1, tokens.length))), count = Math.max(1, Math.floor(w / size));
    let first = tokens.length <= count ? 0 : Math.min(view.first, tokens.length - count);
    if (cursor < first || cursor >= first + count) first = Math.max(0, Math.min(tokens.length - count, cursor - Math.floor(count * 0.7)));
    view = { first, cell: size, count };
    const ctx = host.getContext("2d");
    ctx.scale(r, r);
    for (let row = 0; row < rows; row++) {
      const most = row === shown.points.findIndex((p) => p.shown) && shown.chosen !== null ? shown.scale : shown.points[row].scale || 1;
      for (let k = 0; k < count && first + k < tokens.length; k++) {
        const v = strips[row][first + k], x = k * size, wide = Math.max(1, size - (size > 5 ? 1 : 0));
        if (v === null || v === undefined) { ctx.fillStyle = line; ctx.fillRect(x, row * ROW + ROW / 2 - 0.5, wide, 1); continue; }
        const share = Math.min(1, Math.abs(v) / most);
        ctx.fillStyle = `rgb(${v < 0 ? down : up} / ${(0.05 + 0.95 * share).toFixed(2)})`;
        ctx.fillRect(x, row * ROW + 1, wide, ROW - 2);
      }
    }
    if (cursor >= first) {
      ctx.strokeStyle = text;
      ctx.lineWidth = 1.5;
      ctx.strokeRect((cursor - first) * size - 0.5, 0.75, Math.max(3, size), rows * ROW - 1.5);
    }
  }

  function cell(e) {
    const row = Math.floor(e.offsetY / ROW), i = view.first + Math.floor(e.offsetX / view.cell);
    return shown && row >= 0 && row < shown.points.length && i < tokens.length && i >= 0 ? { row, i } : null;
  }

  function prompts(source) {
    list = JSON.parse(source.data.json[0]);
    q(".prompts-count").textContent = String(list.length);
    prompted();
  }

  function prompted() {
    const host = q(".prompt-list"), wanted = q("#prompt-search").value.trim().toLowerCase(), focused = document.activeElement?.dataset?.prompt;
    const found = list.filter((p) => !wanted || `${p.prompt} ${p.text} ${p.labels.map((l) => l.join(" ")).join(" ")}`.toLowerCase().includes(wanted));
    const scrolled = host.scrollTop;
    host.replaceChildren(...found.map((p) => {
      const item = node("li"), go = node("button", "prompt"), head = node("span", "head-line");
      go.dataset.prompt = p.prompt;
      head.append(node("b", "", `${p.prompt}`), node("span", "long", p.written ? `${p.given} + ${p.written} tokens` : `${p.given} given`));
      go.append(head, node("span", "excerpt", p.text || "(nothing but tokens)"));
      if (p.labels.length) { const tags = node("span", "tags"); tags.append(...p.labels.map(([name, value]) => node("span", "tag", `${name} ${value}`))); go.append(tags); }
      go.addEventListener("click", () => window.itime.send({ op: "prompt", to: p.prompt }));
      item.append(go);
      if (p.pair) { const beside = node("button", "beside", "with and without, side by side"); beside.addEventListener("click", () => window.ipairs.open(p.pair)); item.append(beside); }
      return item;
    }));
    host.scrollTop = scrolled;
    q(".prompts-none").hidden = found.length > 0;
    if (focused !== undefined) host.querySelector(`[data-prompt="${focused}"]`)?.focus();
    prompts_mark();
  }

  function prompts_mark() {
    for (const button of document.querySelectorAll(".prompt")) {
      if (shown && Number(button.dataset.prompt) === shown.prompt.prompt) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
    }
  }

  return { ready, show, prompts, words, heading: () => { if (shown) heading(); }, moved, mark, choose, shade: by, active: () => shown !== null, at: () => cursor };
})();
