"use strict";
// Finding: links to features, filters and order of their list, predicates tried, spans compared, the clip. Its state is the address's part after #.
window.ifind = (() => {
  const { node } = window.imake;
  const q = (query) => document.querySelector(query), known = (v) => v !== null && v !== undefined;
  const KEYS = ["find", "layer", "score", "low", "high", "r", "sort", "when", "a", "b"], FILTERS = ["score", "low", "high", "r"];
  const state = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  let source = "", boot = "", env = 0, list = [], asked = 0;

  const minus = (text) => text.replace("-", "−");
  const two = (v) => (known(v) ? minus(v.toFixed(2)) : "–");
  const short = (v) => (known(v) ? minus(String(+v.toPrecision(3))) : "–");
  const percent = (v) => (known(v) ? `${(100 * v).toFixed(v > 0 && v < 0.1 ? 1 : 0)}\u202f%` : "–");
  const thin = (n) => n.toLocaleString("en").replaceAll(",", "\u2009");

  function keep(name, value) {
    if (value) state[name] = value; else delete state[name];
    const hash = new URLSearchParams(KEYS.filter((k) => state[k]).map((k) => [k, state[k]])).toString();
    history.replaceState(null, "", location.pathname + location.search + (hash ? "#" + hash : ""));
  }

  const href = (feature, hash = source.split("|").at(-1)) => `/feature/${encodeURIComponent(hash)}/${feature}`;
  function link(feature, text, hash) { const a = node("a", "", text); a.href = href(feature, hash); return a; }

  function ready() {
    q(".filters").prepend(layer.label);
    layer.select.addEventListener("change", () => { keep("layer", layer.select.value); other = null; window.ilists.fill(); load(); });
    setInterval(() => { if (state.layer && !q("#panel-features").hidden && !document.hidden) load(); }, 5000);
    q("#search").value = state.find ?? "";
    for (const name of FILTERS) {
      const input = q(`[data-filter=${name}]`);
      input.value = state[name] ?? "";
      input.addEventListener("input", () => { keep(name, input.value); window.ilists.fill(); });
    }
    for (const button of document.querySelectorAll("[data-sort]")) button.addEventListener("click", () => {
      const [key, up] = (state.sort ?? "").split("-"), name = button.dataset.sort;
      keep("sort", key !== name ? name : up ? "" : `${name}-up`);
      window.ilists.fill();
    });
    q("#search").addEventListener("input", (e) => keep("find", e.target.value));
    document.addEventListener("click", (e) => { if (e.target.closest?.("a[href]")) window.itime.settle(); }, true);
    ask();
    brush();
    if (state.when) { q("#when-box").value = state.when; tryIt(); }
    q("#span-a").value = state.a ?? "";
    q("#span-b").value = state.b ?? "";
    if (boot) compare();
  }

  // Tap points: the list is of the one that is shown, of another, or of all; other ones are asked for.
  const layer = { label: node("label", "layer", "layer "), select: node("select"), key: "" };
  layer.label.append(layer.select);
  layer.label.hidden = true;
  let other = null, loading = 0;
  function offered(sources) {
    const key = JSON.stringify([sources, source]), several = Object.keys(sources).length > 1;
    if (key === layer.key) return;
    layer.key = key;
    layer.label.hidden = !several;
    if (state.layer && state.layer !== "all" && !(state.layer in sources) || !several) { keep("layer", ""); other = null; }
    const option = (value, text) => { const o = node("option", "", text); o.value = value; return o; };
    layer.select.replaceChildren(option("", `shown: ${sources[source] ?? source}`), option("all", "all"), ...Object.entries(sources).filter(([k]) => k !== source).map(([k, text]) => option(k, text)));
    if (state.layer === source) keep("layer", "");
    layer.select.value = state.layer ?? "";
    if (state.layer && boot) load();
  }
  async function load() {
    const wanted = state.layer, turn = ++loading;
    if (!wanted || !boot) return;
    const found = await fetched(`/features?${new URLSearchParams({ boot, layer: wanted })}`);
    if (turn !== loading || found.error) return;
    other = found;
    window.ilists.fill();
  }
  // Rows of the chosen layer. Those of the shown one can be pinned, the others have a page.
  function layered(all) {
    if (!state.layer) return all;
    const mine = new Map(all.filter((f) => f.kind === "feature").map((f) => [f.by.feature, f]));
    return (other?.rows ?? []).map((f) => { const known = f.layer === source ? mine.get(f.by.feature) : null; return { ...f, pin: known?.pin ?? "", pinned: known?.pinned ?? false }; });
  }

  // What the server says is looked at; a comparison that the address asks for waits for it.
  let opened = false;
  function about(s) {
    source = s.source;
    boot = s.boot;
    env = s.env;
    offered(s.sources);
    if (!opened && boot) compare();   // what the address asks for
    opened = opened || Boolean(boot);
    const place = window.itime.place(), at = place.live ? place.newest : place.seq;
    q("#clip").href = `/clip?${new URLSearchParams({ boot, env, at: at ?? 0, source })}`;
  }

  // the list of features

  const SHOWN = 400;
  function pick(given, words) {
    const all = layered(given);
    list = all;
    const bound = (name, otherwise) => { const v = parseFloat(state[name]); return Number.isFinite(v) ? v : otherwise; };
    const score = bound("score", null), low = bound("low", null), high = bound("high", null), r = bound("r", null);
    const filtered = score !== null || low !== null || high !== null || r !== null;
    let rows = all.filter((f) => words.every((w) => `${f.name} ${f.label} ${f.goes} ${f.about} ${f.point ?? ""}`.toLowerCase().includes(w)));
    if (filtered) rows = rows.filter((f) => f.kind === "feature" && (score === null || (known(f.by.score) && f.by.score >= score)) && (low === null || 100 * f.by.share >= low) && (high === null || 100 * f.by.share <= high) && (r === null || (known(f.by.r) && Math.abs(f.by.r) >= r)));
    const [key, up] = (state.sort ?? "").split("-");
    if (["feature", "score", "share", "r"].includes(key)) {
      const value = (f) => (key === "feature" ? -f.by?.feature : key === "r" ? (known(f.by?.r) ? Math.abs(f.by.r) : null) : f.by?.[key]);
      rows = [...rows].sort((a, b) => { const x = value(a), y = value(b); return known(x) && known(y) && !Number.isNaN(x) && !Number.isNaN(y) ? (up ? x - y : y - x) : Number(known(y) && !Number.isNaN(y)) - Number(known(x) && !Number.isNaN(x)); });
    }
    for (const button of document.querySelectorAll("[data-sort]")) {
      const th = button.closest("th");
      if (button.dataset.sort === key) th.setAttribute("aria-sort", (key === "feature") !== Boolean(up) ? "ascending" : "descending"); else th.removeAttribute("aria-sort");
    }
    const of = state.layer ? other?.of ?? 0 : all.length, shown = rows.slice(0, state.layer ? SHOWN : rows.length);
    q(".filters .count").textContent = state.layer && !other ? "loading …" : shown.length === of ? "" : `${thin(shown.length)} of ${thin(of)}${state.layer && of > all.length ? ", the most active" : ""}`;
    return shown;
  }

  // asking

  function ask() {
    q("#try").addEventListener("submit", (e) => { e.preventDefault(); keep("when", q("#when-box").value.trim()); tryIt(); });
    q("#compare").addEventListener("submit", (e) => { e.preventDefault(); spans(); compare(); });
    q("#use-loop").addEventListener("click", () => { const l = window.itime.place().loop; if (l) take(`${l[0]}-${l[1]}`); else say("#compared", "No loop is set: shift-drag over the timeline sets one."); });
    q("#use-episode").addEventListener("click", () => {
      const place = window.itime.place(), at = place.live ? place.newest : place.seq, data = window.itime.data();
      const episode = data?.episodes.find(([from, to]) => from <= at && at <= to);
      if (episode) take(`e${episode[2]}`); else say("#compared", window.itokens.words("No whole episode is known at the cursor."));
    });
    q("#tab-ask").addEventListener("click", names);
  }

  // Names complete while typing, once they are known.
  let named = false;
  async function names() {
    if (named) return;
    named = true;
    const found = await fetched(`/try?${new URLSearchParams({ point: point() })}`);
    q("#known-names").replaceChildren(...(found?.names ?? []).slice(0, 200).map((n) => { const o = node("option"); o.value = n; return o; }));
  }

  const point = () => source.split("|")[0];
  function spans() { keep("a", q("#span-a").value.trim()); keep("b", q("#span-b").value.trim()); }
  function take(text) {
    const first = q("#span-a"), second = q("#span-b");
    if (first.value && q("#second").checked) second.value = text; else first.value = text;
    spans();
    compare();
  }

  async function fetched(url) {
    try {
      const response = await fetch(url, { cache: "no-store" });
      return response.ok ? await response.json() : { error: response.status === 503 ? "The database cannot be read just now; ask again." : `The server answers ${response.status}.` };
    } catch { return { error: "The server of this page does not answer." }; }
  }
  function say(where, text, wrong) { q(where).replaceChildren(node("p", wrong ? "wrong" : "", text)); }

  function table(heads, rows, label) {
    const head = node("tr", "", ...heads.map(([text, kind, about]) => { const th = node("th", kind, text); th.scope = "col"; if (about) th.title = about; return th; }));
    const made = node("div", "scroll", node("table", "", node("thead", "", head), node("tbody", "", ...rows)));
    made.tabIndex = 0;
    made.setAttribute("role", "region");
    made.setAttribute("aria-label", label);
    return made;
  }
  function name(row, hash) { return row.feature === null || row.feature === undefined ? node("td", "", row.name, row.unit ? `, ${row.unit}` : "") : node("td", "", link(row.feature, `${row.name}${row.label ? " " + row.label : ""}`, hash)); }

  async function tryIt() {
    const text = q("#when-box").value.trim(), host = q("#tried"), turn = ++asked;
    if (!text) { host.replaceChildren(); return; }
    say("#tried", window.itokens.words("Scoring on held-out episodes …"));
    const found = await fetched(`/try?${new URLSearchParams({ when: text, point: point() })}`);
    if (turn !== asked) return;
    if (found.error) {
      say("#tried", found.error, true);
      if (known(found.position)) host.append(node("pre", "", `${text}\n${" ".repeat(found.position)}^`));
      return;
    }
    if (!found.fits.length) { say("#tried", `${found.text}: no feature is active often enough to score it on.`); return; }
    host.replaceChildren(node("p", "", node("code", "", found.text), ` holds in ${percent(found.holds)} of ${thin(found.frames)} held-out frames${found.undefined ? `, undefined in ${percent(found.undefined)}` : ""}. The features it fits best:`),
      table([["feature", ""], ["score", "n", window.itokens.words("Balanced accuracy on held-out episodes")], ["95 %", "n"], ["finds", "n", "Share of the feature's active frames in which the predicate holds"]], found.fits.map((f) => node("tr", "", name(f, found.hash), node("td", "n", two(f.balanced_accuracy)), node("td", "n", known(f.low) ? `${two(f.low)} … ${two(f.high)}` : "–"), node("td", "n", percent(f.sensitivity)))), "Features that the predicate fits best"));
  }

  let compared = 0;
  async function compare() {
    const a = q("#span-a").value.trim(), b = q("#span-b").value.trim() || "rest", turn = ++compared;
    if (!a || !boot) { q("#compared").replaceChildren(); return; }
    say("#compared", "Comparing …");
    const found = await fetched(`/compare?${new URLSearchParams({ boot, env, a, b, point: point() })}`);
    if (turn !== compared) return;
    if (found.error) { say("#compared", found.error, true); return; }
    if (/s-/.test(a)) { q("#span-a").value = `${found.a.first}-${found.a.last}`; spans(); }
    const one = (s, text) => {
      const made = node("div", "", node("p", "", node("b", "", text), ` · ${window.itokens.words(`${thin(s.frames)} frames of ${s.episodes} episode${s.episodes === 1 ? "" : "s"}`)}${known(s.reward) ? ` · mean reward ${short(s.reward)}` : ""}`));
      if (known(s.picture) && text !== "rest") { const img = node("img"); img.src = `/picture/${encodeURIComponent(boot)}/${env}/${s.picture}`; img.alt = `In the middle of ${text}`; made.append(img); }
      return made;
    };
    const rows = (all, show) => all.map((d) => node("tr", known(d.q) && d.q < 0.05 ? "" : "faint", name(d, found.hash), node("td", "n", show(d.a)), node("td", "n", show(d.b)), node("td", "n", known(d.low) ? `${short(d.difference)}` : short(d.difference)), node("td", "n", known(d.low) ? `${short(d.low)} … ${short(d.high)}` : "–")));
    const features = found.rows.filter((d) => known(d.feature)).slice(0, 25), metrics = found.rows.filter((d) => !known(d.feature)).slice(0, 12);
    const heads = (what, of) => [[what, ""], [of[0], "n"], [of[1], "n"], ["difference", "n"], ["95 %", "n"]], ab = [a.length > 12 ? "a" : a, b.length > 12 ? "b" : b];
    q("#compared").replaceChildren(node("div", "two", one(found.a, a), one(found.b, b)), node("p", "", `Share of frames in which each is active, largest effect first; faint: not significant (q ≥ 0.05). Intervals draw ${found.by} again${found.by === "episodes" ? "" : ": too few episodes, so they hold within these frames only"}.`),
      table(heads("feature", ab), rows(features, percent), "Features by how much they differ"), table(heads("metric", ab), rows(metrics, short), "Metrics by how much they differ"));
  }

  // With the tab Ask open, or with alt held, dragging over the panels of frames marks a span to compare.
  function brush() {
    for (const canvas of ["raster", "strips"].map((n) => q(`[data-canvas=${n}]`))) {
      const mark = node("div", "brush");
      mark.hidden = true;
      canvas.after(mark);
      let from = null, dragged = false;
      canvas.addEventListener("pointerdown", (e) => {
        const t = window.idraw.timeAt(e, canvas);
        dragged = false;
        from = t !== null && e.button === 0 && (e.altKey || !q("#panel-ask").hidden) ? { t, x: e.offsetX } : null;
        if (from) canvas.setPointerCapture(e.pointerId);
      });
      canvas.addEventListener("pointermove", (e) => {
        if (!from || Math.abs(e.offsetX - from.x) < 5) return;
        dragged = true;
        mark.hidden = false;
        mark.style.left = `${canvas.offsetLeft + Math.min(e.offsetX, from.x)}px`;
        mark.style.width = `${Math.abs(e.offsetX - from.x)}px`;
      });
      canvas.addEventListener("pointerup", (e) => {
        const t = from && dragged ? window.idraw.timeAt(e, canvas) : null, began = from;
        from = null;
        mark.hidden = true;
        if (t === null) return;
        const [a, b] = [Math.min(t, began.t), Math.max(t, began.t)];
        window.ilists.choose("ask");
        take(`${Math.max(0, a).toFixed(2)}s-${Math.max(0, b).toFixed(2)}s`);
      });
      canvas.addEventListener("click", (e) => { if (dragged) { e.stopImmediatePropagation(); dragged = false; } }, true);
    }
  }

  return { ready, about, pick, href, state };
})();
