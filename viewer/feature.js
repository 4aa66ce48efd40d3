"use strict";
// One feature on a page of its own: all of its data is in the document, written as text, drawn as SVG.
(() => {
  const { node } = window.imake;
  const data = JSON.parse(document.querySelector("#data").textContent), host = document.querySelector("main");
  const NS = "http://www.w3.org/2000/svg", known = (v) => v !== null && v !== undefined;

  function svg(tag, attributes, ...parts) {
    const made = document.createElementNS(NS, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...parts);
    return made;
  }
  const minus = (text) => text.replace("-", "−");
  const two = (v) => (known(v) ? minus(v.toFixed(2)) : "–");
  const signed = (v) => (known(v) ? minus((v > 0 ? "+" : "") + (Math.abs(v) >= 100 ? v.toPrecision(3) : v.toFixed(2))) : "–");
  const short = (v) => (known(v) ? minus(String(+v.toPrecision(3))) : "–");
  const whole = (v) => (known(v) ? v.toLocaleString("en").replaceAll(",", "\u2009") : "–");
  const percent = (v) => (!known(v) ? "–" : v > 0 && v < 0.005 ? `${(100 * v).toPrecision(1)}\u202f%` : `${(100 * v).toFixed(v < 0.1 ? 1 : 0)}\u202f%`);
  const clock = (t) => (known(t) ? `${Math.floor(t / 60)}:${String(Math.floor(t % 60)).padStart(2, "0")}` : "");
  const fe = (f) => `/feature/${encodeURIComponent(data.dictionary.hash)}/${f}`;

  if (data === null) {
    host.append(node("h1", "", "There is no such feature here"), node("p", "", "This database does not know that dictionary, or it has no feature of that number."), node("p", "", link("/", "To the page")));
    return;
  }

  function link(href, text) { const a = node("a", "", text); a.href = href; return a; }
  function card(name, kind, ...parts) { const section = node("section", `card ${kind}`, node("h2", "", ...[name].flat()), ...parts); section.setAttribute("aria-label", [name].flat()[0]); return section; }
  function image(box, about, ...parts) { return svg("svg", { viewBox: `0 0 ${box.join(" ")}`, role: "img", "aria-label": about }, ...parts); }
  function table(heads, rows) {
    const head = node("tr", "", ...heads.map(([text, kind]) => { const th = node("th", kind, text); th.scope = "col"; return th; }));
    const scroll = node("div", "scroll", node("table", "", node("thead", "", head), node("tbody", "", ...rows)));
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", heads.map(([text]) => text).join(", "));
    return scroll;
  }

  function head() {
    const back = link("/", "← The page"), json = link(`${fe(data.feature)}.json`, "JSON");
    const source = `${data.dictionary.point}|${data.dictionary.hash}`, reach = data.dictionary.kind === "neurons" ? null : link(`/?source=${encodeURIComponent(source)}&reach=${data.feature}`, "Reach in");
    back.addEventListener("click", (e) => { if (document.referrer.startsWith(location.origin) && history.length > 1) { e.preventDefault(); history.back(); } });
    const d = data.dictionary, of = [data.run, data.environment, `${d.name}${d.kind === "neurons" ? "" : "#" + d.hash.slice(0, 8)}`, d.point].filter(Boolean).join(" · ");
    const by = [data.source ? `by ${data.source}` : "", data.version ? `version ${data.version}` : ""].filter(Boolean).join(", ");
    const top = node("div", "top", node("nav", "", back, json, reach), ...people.heading(), node("span", "of", of, by ? ` · ${by}` : ""));
    top.querySelector("nav").setAttribute("aria-label", "This feature");
    const origin = people.origin();
    if (origin) top.append(origin);
    top.append(node("p", "saying", data.description || (data.label ? "" : "Nobody has explained this feature yet. An explainer does: interlatent-live explain --db …")));
    if (data.predicate) top.append(node("p", "rule", "active where ", node("code", "", data.predicate)));
    if (data.stale) top.append(node("p", "stale", `stale: ${data.stale}`));
    return top;
  }

  // A score with its kind, where it is not a predicate's.
  const told = (score, kind) => known(score) && kind && kind !== "predicate" ? `${kind} ${two(score)}` : two(score);

  // Balanced accuracy on a line from 0.4 to 1: interval, value, and the shuffled control as a dashed tick.
  function score() {
    const s = data.score;
    if (!s || !known(s.balanced_accuracy)) return card("Score", "", node("p", "big", "unscored"), node("p", "", data.label ? `Nothing has tested this explanation yet, or a class is missing on held-out ${episodes}.` : "There is nothing to score."));
    const x = (v) => 6 + (Math.max(0.4, Math.min(1, v)) - 0.4) / 0.6 * 288, parts = [svg("line", { class: "axis", x1: 6, x2: 294, y1: 20, y2: 20 })];
    for (const v of [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]) parts.push(svg("text", { x: x(v), y: 44, "text-anchor": v === 0.4 ? "start" : v === 1 ? "end" : "middle" }, v.toFixed(1)));
    if (known(s.low)) parts.push(svg("line", { class: "span", x1: x(s.low), x2: x(s.high), y1: 20, y2: 20 }));
    if (known(s.shuffled)) parts.push(svg("line", { class: "control", x1: x(s.shuffled), x2: x(s.shuffled), y1: 8, y2: 32 }));
    parts.push(svg("circle", { class: "dot", cx: x(s.balanced_accuracy), cy: 20, r: 5 }));
    const interval = known(s.low) ? `95 % ${two(s.low)} … ${two(s.high)}` : `no interval: too few ${episodes}`, sentence = s.kind && s.kind !== "predicate";
    const control = sentence ? (known(s.shuffled) ? `another feature's sentence ${two(s.shuffled)} (dashed)` : "no control") : known(s.shuffled) ? `shuffled explanations ${two(s.shuffled)} (dashed)` : "no shuffled control: nothing else to shuffle with";
    const judged = (data.scores ?? []).filter((j) => j.judge && known(j.balanced_accuracy)).map((j) => node("p", "", `Its sentence, judged by ${j.judge} on ${whole(j.frames)} pieces of ${whole(j.episodes)} held-out texts: ${j.kind} ${two(j.balanced_accuracy)}${known(j.low) ? ` (95 % ${two(j.low)} … ${two(j.high)})` : ""}, another feature's sentence ${two(j.shuffled)}, chance up to ${two(j.chance)}.`));
    if (sentence) return card("Score", "", node("p", "big", two(s.balanced_accuracy), node("small", "", `  ${s.kind}, ${interval}`)), image([300, 48], `${s.kind} ${two(s.balanced_accuracy)}, ${interval}, ${control}`, ...parts), ...judged);
    return card("Score", "", node("p", "big", two(s.balanced_accuracy), node("small", "", `  balanced accuracy, ${interval}`)), image([300, 48], `${two(s.balanced_accuracy)}, ${interval}, ${control}`, ...parts),
      node("p", "", `${control}. ${whole(s.frames)} ${frames} of ${whole(s.episodes)} ${s.basis === "live" ? `${episodes} of this stream that it was not made from` : `held-out ${episodes}`}, active in ${whole(s.positives)}; sensitivity ${two(s.sensitivity)}, specificity ${two(s.specificity)}.`), ...judged);
  }

  function histogram() {
    const a = data.activity, h = data.histogram, parts = [];
    parts.push(node("p", "big", a ? percent(a.density) : "–", node("small", "", a ? `  of ${whole(a.frames)} ${frames}; largest ${short(a.maximum)}, mean when active ${short(a.mean)}` : "  no activity is kept yet")));
    if (!h) return card("How often, how strongly", "", ...parts, node("p", "", `The newest ${frames} are of another dictionary, so no histogram is drawn.`));
    if (!h.active) return card("How often, how strongly", "", ...parts, node("p", "", `Silent in the newest ${whole(h.frames)} ${frames}.`));
    const most = Math.max(...h.counts), bars = h.counts.map((c, i) => svg("rect", { class: "fill", x: i * 300 / h.counts.length + 0.5, width: Math.max(1, 300 / h.counts.length - 1), y: 70 - 66 * c / most, height: 66 * c / most }));
    bars.push(svg("line", { class: "axis", x1: 0, x2: 300, y1: 70.5, y2: 70.5 }), svg("text", { x: 0, y: 84 }, short(h.edges[0])), svg("text", { x: 300, y: 84, "text-anchor": "end" }, short(h.edges.at(-1))), svg("text", { x: 150, y: 84, "text-anchor": "middle" }, "activation"));
    return card("How often, how strongly", "", ...parts, image([300, 88], `Histogram of ${whole(h.active)} activations from ${short(h.edges[0])} to ${short(h.edges.at(-1))}`, ...bars), node("p", "", `activations where active: ${whole(h.active)} of the newest ${whole(h.frames)} ${frames}, most in a bin ${whole(most)}`));
  }

  function effect() {
    const e = data.effect, name = "Causal effect";
    if (!e) return card(name, "", node("p", "", data.text ? "Not measured. Steering tries it while the model writes: interlatent-live steer" : "Not measured. It needs rollouts of the agent with the feature suppressed: interlatent-live experiment ablate"));
    if (e.problem) return card(name, "", node("p", "", e.problem));
    const doing = { ablate: "suppressing it", scale: `scaling it by ${short(e.strength)}`, clamp: `clamping it at ${short(e.strength)}`, add: `adding ${short(e.strength)}` }[e.operation] ?? e.operation;
    const unit = e.action_unit === "kl" ? "in probability" : "standard deviations", sure = known(e.q_action) && e.q_action < 0.05;
    const made = [node("p", "big", signed(e.change.mean), node("small", "", `  ${unit} of ${e.toward}, 95 % ${signed(e.change.low)} … ${signed(e.change.high)}`)), node("p", "", `${doing}, over ${whole(e.change.n)} episodes; ${sure ? "more than chance" : "not told from chance"} (q ${short(e.q_action)}).`)];
    if (e.outcome) made.push(node("p", "", `Return: ${signed(e.outcome.mean)}\u202f% (${signed(e.outcome.low)} … ${signed(e.outcome.high)}), ${known(e.q_outcome) && e.q_outcome < 0.05 ? "more than chance" : "not told from chance"} (q ${short(e.q_outcome)}).`));
    return card(name, "", ...made);
  }

  function actions() {
    const a = data.actions, name = ["Actions it promotes and suppresses ", node("small", "", "to first order")];
    if (!a.rows.length) return card(name, "half", node("p", "", a.explained ? `It was not active in the newest ${whole(a.explained)} explained frames.` : "No action of this run is explained. The tap explains some: il.Tap(policy, why=il.Why(…))"));
    const most = Math.max(...a.rows.map((r) => Math.abs(r.per_unit)), 1e-9);
    const rows = a.rows.map((r) => {
      const fill = node("i", r.per_unit < 0 ? "minus" : ""), w = Math.abs(r.per_unit) / most * 50, bar = node("span", "bar2", fill);
      fill.style.width = `${w}%`;
      fill.style.left = r.per_unit < 0 ? `${50 - w}%` : "50%";
      return node("tr", "", node("td", "", r.action, " ", node("small", "", r.per_unit > 0 ? "promoted" : r.per_unit < 0 ? "suppressed" : "")), node("td", "n", bar), node("td", "n", signed(r.per_unit)), node("td", "n faint", `${signed(r.low)} … ${signed(r.high)}`));
    });
    const unit = { logits: "logit", means: "mean", q: "Q-value", scores: "score" }[a.kind] ?? a.kind;
    return card(name, "half", table([["action", ""], ["direction", "n"], [`${unit} per unit`, "n"], ["middle half", "n"]], rows), node("p", "", `Decoder column times what lies behind it: contribution over activation, median of ${whole(a.frames)} explained frames${a.relative ? ", relative to the mean over actions" : ""}.`));
  }

  function windows() {
    if (!data.windows.length) return card("Strongest windows", "wide", node("p", "", "No window is kept yet: they come with events that have ended."));
    const top = Math.max(...data.windows.flatMap((w) => w.values.map((v) => Math.abs(v ?? 0))), 1e-9);
    const items = data.windows.map((w) => {
      const n = w.values.length, a = link(`/?${new URLSearchParams({ boot: w.boot, at: w.seq, ...(w.env ? { env: w.env } : {}), source: `${data.dictionary.point}|${data.dictionary.hash}` })}`, "");
      if (known(w.picture)) { const img = node("img"); img.src = `/picture/${encodeURIComponent(w.boot)}/${w.env}/${w.picture}`; img.alt = `What it saw at frame ${w.seq}`; img.loading = "lazy"; a.append(img); } else a.append(node("span", "blank", "no picture"));
      const x = (i) => i / Math.max(1, n - 1) * 100, y = (v) => 30 - Math.abs(v) / top * 28, parts = [];
      const at = w.frames.indexOf(w.seq);
      if (at >= 0) parts.push(svg("line", { class: "mark", x1: x(at), x2: x(at), y1: 0, y2: 32, "vector-effect": "non-scaling-stroke" }));
      let run = [];
      const close = () => { if (run.length) parts.push(svg("polyline", { class: "trace", points: run.join(" "), "vector-effect": "non-scaling-stroke" })); run = []; };
      w.values.forEach((v, i) => { if (v === null) close(); else run.push(`${x(i).toFixed(1)},${y(v).toFixed(1)}`); });
      close();
      const drawn = image([100, 32], `Activation over ${n} frames about its peak ${short(w.value)}`, ...parts);
      drawn.setAttribute("preserveAspectRatio", "none");
      a.append(drawn, node("p", "", node("b", "", short(w.value)), ` · episode ${w.episode}, frame ${whole(w.seq)}${known(w.t) ? " · " + clock(w.t) : ""}`));
      a.title = "Show this moment";
      return node("li", "", a);
    });
    return card(["Strongest windows ", node("small", "", "one an episode where there are enough; line: activation about its peak; click one to go there")], "wide", node("ol", "windows", ...items));
  }

  function correlations() {
    if (!data.correlations.length) return card("Goes with", "half", node("p", "", "No correlation is known yet, or this run has no metrics."));
    const lagged = Object.fromEntries(data.lags.map((l) => [l.metric, l])), span = data.lags[0]?.lags.at(-1) ?? 0;
    const rows = data.correlations.slice(0, 16).map((c) => {
      const now = c.rolling ?? {}, sure = known(now.q) && now.q < 0.05, lag = lagged[c.metric], cell = node("td", "n");
      if (lag && lag.r.some(known)) {
        const x = (l) => (l + span) / (2 * span) * 90, y = (r) => 11 - r * 10;
        const drawn = image([90, 22], lag.best === 0 ? "r is largest without a lag" : `r is largest, ${signed(lag.best_r)}, with the metric ${Math.abs(lag.best)} steps ${lag.best > 0 ? "later" : "earlier"}`, svg("line", { class: "axis", x1: 0, x2: 90, y1: 11, y2: 11 }), svg("line", { class: "axis", x1: 45, x2: 45, y1: 0, y2: 22 }),
          svg("polyline", { class: "trace", points: lag.lags.map((l, i) => (lag.r[i] === null ? null : `${x(l).toFixed(1)},${y(lag.r[i]).toFixed(1)}`)).filter(Boolean).join(" ") }), svg("circle", { class: "dot", cx: x(lag.best), cy: y(lag.best_r), r: 2.5 }));
        cell.append(drawn);
      }
      const best = lag && known(lag.best) ? node("td", "n", `${signed(lag.best_r)} `, node("small", "", lag.best === 0 ? "at once" : `${Math.abs(lag.best)} ${lag.best > 0 ? "later" : "earlier"}`)) : node("td", "n", "");
      const name = node("td", "", c.metric, " ", node("small", "", c.unit));
      name.title = c.about;
      return node("tr", sure ? "" : "faint", name, node("td", "n", signed(now.r)), node("td", "n", known(now.low) ? `${signed(now.low)} … ${signed(now.high)}` : "–"), node("td", "n", signed(c.start?.r)), cell, best);
    });
    const step = data.text ? " (tokens)" : data.step_period_s ? ` of ${short(1000 * data.step_period_s)}\u202fms` : "";
    return card(["Goes with ", node("small", "", "correlation r; faint: not significant")], data.text ? "half" : "half tall", table([["metric", ""], ["last minute", "n"], ["95 %", "n"], ["from start", "n"], [`lag ±${span}`, "n"], ["largest, with the metric", "n"]], rows), node("p", "", `Lags in steps${step}, within ${episodes} of the newest ${frames}: a metric that follows later may be what the feature foresees or brings about; correlation does not say which.`));
  }

  function others(name, about, rows, key) {
    if (!rows.length) return card(name, "half", node("p", "", about[1]));
    return card([`${name} `, node("small", "", about[0])], "half", table([["feature", ""], ["score", "n"], [key, "n"]], rows.map((r) => {
      const a = link(fe(r.feature), `${r.name}${r.label ? " " + r.label : ""}`);
      return node("tr", "", node("td", "", a), node("td", "n", told(r.score, r.kind)), node("td", "n", two(r[key])));
    })));
  }

  function versions() {
    if (!data.versions.length) return card("Versions", "half", node("p", "", "No explanation was ever made."));
    return card("Versions", "half", table([["version", ""], ["label and rule", ""], ["by", ""], ["score", "n"]], [...data.versions].reverse().map((v) => {
      const made = known(v.created_wall_ns) ? new Date(v.created_wall_ns / 1e6).toLocaleString() : "";
      const what = node("td", "", v.label ?? "", node("br"), node("small", "mono", v.predicate ?? ""));
      const row = node("tr", "", node("td", "", String(v.version)), what, node("td", "", v.source ?? ""), node("td", "n", told(v.score?.balanced_accuracy, v.score?.kind)));
      row.title = made;
      return row;
    })));
  }

  // Where this page may not write, a command does.
  function command() {
    const code = node("code", "", data.rename.replace(/LABEL$/, "'a name of yours'")), copy = node("button", "", "Copy");
    code.tabIndex = 0;
    code.setAttribute("role", "group");
    code.setAttribute("aria-label", "Command that names it");
    copy.addEventListener("click", () => navigator.clipboard?.writeText(code.textContent).then(() => { copy.textContent = "Copied"; document.querySelector("#said").textContent = "Copied"; }, () => {}));
    return card("A name of yours", "half", node("p", "", "This page writes nothing; where the database may be written, a command does. Your names win over an explainer's."), node("div", "command", code, copy));
  }

  let people, text;
  function draw() {
    const open = document.querySelector(".notes details")?.open;
    const parts = [score(), histogram(), effect(), data.text ? text.windows() : windows()];
    if (data.text) parts.push(text.tokens(), correlations()); else parts.push(correlations(), actions());
    parts.push(people.notes(), versions(), others("Similar direction", ["cosine of decoder columns", data.dictionary.kind === "neurons" ? "Neurons have no decoder." : "The dictionary's file is not at hand, so decoder columns cannot be compared."], data.similar, "cosine"), others("Active together", [`r of being active, newest ${frames}`, `No other feature is active with it in the newest ${frames}.`], data.together, "r"));
    if (data.writing?.why && document.body.dataset.embed === undefined) parts.push(command());
    host.replaceChildren(head(), node("div", "grid", ...parts));
    if (open) document.querySelector(".notes details").open = true;
    document.title = `${data.name}${data.label ? " " + data.label : ""} – Interlatent Live`;
  }

  const frames = data.text ? "tokens" : "frames", episodes = data.text ? "texts" : "episodes";
  const kit = { node, card, table, known, link, two, short, whole, percent, fe, draw };
  people = window.ipeople(data, kit);
  text = window.icontexts(data, kit);
  draw();
})();
