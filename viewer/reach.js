"use strict";
// The drawer "Reach in": a form that asks, what is in force, what was before, and RELEASE ALL. What is shown comes from the server; what is
// asked goes out over the page's own websocket, numbered, waiting for nothing. The address fills the form in and does no more.
window.ireach = (() => {
  const { node } = window.imake;
  const q = (query) => document.querySelector(query), known = (v) => v !== null && v !== undefined;
  const OPERATIONS = ["ablate", "scale", "clamp", "add"], TIMES = [5, 10, 30, 60, 120, 300], BEAT_MS = 250, SAID_MS = 8000;
  const HINTS = { ablate: "as if it were never active", scale: "multiply what there is", clamp: "hold it here, also where it is silent", add: "shift it, never below 0" };
  let asks = null, n = 0, f = 0, data = {}, past = [], open = false, ticker = null, beats = 0, until = 0, due = null, from = null, before = null, later = null, answered = 0, coming = "";
  let typical = null, basis = "", strengths = {}, touched = new Set(), told = 0;   // strengths: by operation; touched: those that somebody chose
  const cards = new Map(), pending = new Map();

  function text(element, value) { if (element.textContent !== value) element.textContent = value; }
  const minus = (words) => words.replaceAll("-", "−"), short = (v) => minus(String(+v.toPrecision(3)));
  const seconds = (s) => (s >= 60 && s % 60 === 0 ? `${s / 60}\u202fmin` : `${s}\u202fs`);
  const left = (s) => (s >= 60 ? `${Math.floor(s / 60)}\u202fmin ${Math.floor(s % 60)}\u202fs` : `${Math.max(0, Math.ceil(s))}\u202fs`);

  function ready(args) {
    asks = args.asks;
    for (const operation of OPERATIONS) q(`#reach-op-${operation}`).addEventListener("change", chosen);
    for (const [mine, other] of [["range", "strength"], ["strength", "range"]]) q(`#reach-${mine}`).addEventListener("input", (e) => {
      const { operation } = form();
      touched.add(operation);
      strengths[operation] = parseFloat(e.target.value);
      q(`#reach-${other}`).value = e.target.value;
      changed();
    });
    q("#reach-feature").addEventListener("input", () => { another(); changed(); });
    for (const name of ["ttl", "env", "when", "reason", "unmeasured"]) q(`#reach-${name}`).addEventListener("input", changed);
    q("#reach-form").addEventListener("submit", (e) => { e.preventDefault(); go("try"); });
    q("#reach-apply").addEventListener("click", () => go("apply"));
    q("#reach-close").addEventListener("click", () => toggle(false));
    q("#reach-open").addEventListener("click", () => toggle());
    q("#steered").addEventListener("click", () => toggle(true));
    q("#release-all").addEventListener("click", all);
    q("#reach .copy").addEventListener("click", (e) => {
      const button = e.currentTarget, said = (words) => { text(button, words); setTimeout(() => text(button, "Copy"), 1500); };
      navigator.clipboard.writeText(q("#reach .reach-why code").textContent).then(() => said("Copied"), () => {
        getSelection().selectAllChildren(q("#reach .reach-why code"));
        said("Press Ctrl+C");
      });
    });
    document.addEventListener("keydown", (e) => {
      if (e.altKey && !e.ctrlKey && !e.metaKey && e.code === "KeyX") { e.preventDefault(); all(); }
      else if (e.key === "Escape" && open && !q("#keys").open && !e.defaultPrevented && e.target.closest?.("#reach, body") && !/search/.test(e.target.type)) toggle(false);
    });
    const foot = q("footer.time");
    for (const [bar, name] of [[q("header"), "--head"], [foot, "--foot"]]) new ResizeObserver(() => document.body.style.setProperty(name, `${bar.offsetHeight}px`)).observe(bar);
    if (args.reach.data.json[0]) show(args.reach);
    if (args.reached.data.json[0]) reached(args.reached);
    const wanted = new URLSearchParams(location.search).get("reach");
    if (wanted !== null) { fill(wanted); toggle(true, false); }
  }

  // asking

  function send(op, more = {}) {
    n += 1;
    if (asks) asks.data = { json: [JSON.stringify([{ op, n, ...more }])] };
    return n;
  }

  function beat() {
    if (performance.now() > until && !data.beats) { stop(); return; }
    send("beat");
  }
  // A worker keeps time, for a hidden tab's own timers are slowed; the page's thread sends the beat, so a page that hangs sends none.
  function start() {
    until = performance.now() + 4000;
    if (ticker) return;
    const source = URL.createObjectURL(new Blob([`setInterval(() => postMessage(0), ${BEAT_MS})`], { type: "text/javascript" }));
    ticker = new Worker(source);
    URL.revokeObjectURL(source);
    ticker.onmessage = beat;
    beat();
  }
  function stop() { ticker?.terminate(); ticker = null; }

  function form() {
    const operation = OPERATIONS.find((o) => q(`#reach-op-${o}`).checked), number = q("#reach-feature").value.match(/\d+/);
    const strength = parseFloat(q("#reach-strength").value), env = q("#reach-env").value;
    return {
      feature: number ? Number(number[0]) : null, operation, strength: operation === "ablate" ? 0 : Number.isFinite(strength) ? strength : null, ttl_s: Number(q("#reach-ttl").value),
      when: q("#reach-when").value.trim(), env: env === "" ? null : Number(env), reason: q("#reach-reason").value.trim(),
    };
  }

  // What the form holds is told to the server, which says what it is of, whether it makes sense, and what was measured of it.
  function changed() {
    clearTimeout(due);
    text(q("#reach .refused"), "");
    due = setTimeout(tell, 120);
    buttons();
  }
  function tell() {
    clearTimeout(due);
    due = null;
    f += 1;
    const asked = form();
    send("form", { f, ...asked });
    window.itime.send({ op: "reach", to: open ? address(asked) : null });
  }
  function address(asked) {
    if (asked.feature === null) return "";
    if (asked.operation === "ablate") return `${asked.feature},ablate`;
    return asked.strength === null ? `${asked.feature},${asked.operation}` : `${asked.feature},${asked.operation},${+asked.strength.toFixed(6)}`;
  }
  function fill(wanted) {
    const [feature, operation, strength] = wanted.split(",");
    if (/^\d+$/.test(feature ?? "")) q("#reach-feature").value = feature;
    if (OPERATIONS.includes(operation)) q(`#reach-op-${operation}`).checked = true;
    if (Number.isFinite(parseFloat(strength))) { strengths[operation] = parseFloat(strength); touched.add(operation); }
    operated();
  }
  // Of another feature other strengths are typical.
  function another() {
    typical = null;
    strengths = {};
    touched = new Set();
    operated();
  }

  function go(op) {
    if (!data.usable || due !== null) { if (due !== null) { tell(); later = op; } return; }   // what was typed just now is told first
    later = null;
    text(q("#reach .refused"), "");
    const asked = form();
    if (asked.feature === null || asked.strength === null) { text(q("#reach .refused"), "Give a feature and a strength, as numbers."); return; }
    start();
    pending.set(send(op, { ...asked, unmeasured: q("#reach-unmeasured").checked }), op);
    buttons();
  }

  function all() {
    if (document.body.dataset.reachGone) { say("The server of this page is gone. What this page began ends by itself; to end all from a terminal: interlatent-live steer release --all", true); return; }
    if (!data.may) { say("This page may not steer, so it cannot release either. From a terminal: interlatent-live steer release --all", true); return; }
    send("all");
    say("Releasing all …");
  }

  function say(words, bad = false) {
    const host = q("#reach-said");
    host.hidden = false;
    host.classList.toggle("bad", bad);
    text(host, words);
    clearTimeout(before);
    before = setTimeout(() => { host.hidden = true; }, SAID_MS);
  }

  // the drawer

  function toggle(on = !open, focus = true) {
    if (on === open) { if (on && focus) q("#reach").focus(); return; }
    open = on;
    q("#reach").hidden = !on;
    q("#reach-open").setAttribute("aria-expanded", String(on));
    document.body.dataset.reach = on ? "open" : "closed";
    if (on) {
      from = document.activeElement;
      if (!q("#reach-feature").value) prefill();
      operated();
      send("open", { on: true });
      tell();
      if (focus) q("#reach").focus();
      timer();
    } else {
      send("open", { on: false });
      window.itime.send({ op: "reach", to: null });
      (from?.isConnected && from !== document.body ? from : q("#reach-open")).focus();
    }
  }

  // The first pinned feature, else the first row.
  function prefill() {
    const row = q(".rows [aria-pressed=true][data-row]") ?? q(".rows [data-row]");
    if (row) q("#reach-feature").value = row.dataset.row;
  }

  function choose(feature) {
    q("#reach-feature").value = feature;
    another();
    toggle(true);
    tell();
  }

  function chosen() {
    operated();
    changed();
  }

  // The slider of an operation: scale in times, clamp and add in units of the activation about the typical maximum.
  function operated() {
    const { operation } = form(), range = q("#reach-range"), box = q("#reach-strength"), most = typical ?? 5;
    q("#reach-strong").classList.toggle("none-needed", operation === "ablate");
    for (const input of [range, box]) input.disabled = operation === "ablate" || !data.usable;
    text(q("#reach-hint"), HINTS[operation]);
    text(q("#reach-unit"), operation === "scale" ? "times" : "activation");
    const [low, high, step] = operation === "scale" ? [0, 4, 0.05] : operation === "clamp" ? [0, 2 * most, most / 50] : [-2 * most, 2 * most, most / 50];
    const nice = operation === "scale" ? step : 10 ** Math.floor(Math.log10(step || 0.1));
    range.min = +low.toPrecision(3); range.max = +high.toPrecision(3); range.step = nice;
    box.min = operation === "add" ? "" : 0;
    if (!touched.has(operation)) strengths[operation] = operation === "scale" ? 2 : typical === null ? 1 : +typical.toPrecision(3);
    if (operation !== "ablate") { box.value = +(+strengths[operation]).toFixed(6); range.value = strengths[operation]; }
    text(q("#reach-ends"), operation === "ablate" ? "" : operation === "scale" ? "1 changes nothing" : typical === null ? "what is typical is not known yet" : `${short(typical)}: ${basis}`);
  }

  function buttons() {
    const mine = data.form, fresh = due === null && mine && mine.f === f && later === null, waiting = pending.size > 0;
    const measured = fresh && mine.trial, sure = q("#reach-unmeasured").checked;
    q("#reach-try").disabled = !data.usable || waiting || Boolean(fresh && mine.problem);
    q("#reach-apply").disabled = !data.usable || waiting || Boolean(fresh && mine.problem) || !(measured || sure);
    text(q("#reach-apply"), `Apply for ${seconds(Number(q("#reach-ttl").value) || 0)}`);
    q("#reach-apply").title = measured || sure ? "" : "First try it in shadow: what it does is measured, and nothing is applied";
  }

  // what the server tells

  function show(source) {
    data = JSON.parse(source.data.json[0]);
    told = performance.now();
    header();
    for (const said of data.said) if (said.n > answered) answer(said);
    if (!open || !data.policy) return;   // of a closed drawer the server tells no more
    q(".reach-why").hidden = data.usable;
    text(q(".reach-why p"), data.why ?? "");
    q(".reach-why div").hidden = !data.command;
    text(q(".reach-why code"), data.command ?? "");
    q("#reach-fields").disabled = !data.usable;
    times();
    environments();
    suggestions();
    formed();
    force();
  }

  function header() {
    const pill = q("#steered"), here = data.here > 0 && document.body.dataset.cursor === "past";
    const words = here ? "STEERED HERE" : data.acting ? (data.acting > 1 ? `STEERED ×${data.acting}` : "STEERED") : data.measuring ? "SHADOW" : "";
    pill.hidden = !words;
    pill.dataset.kind = here || data.acting ? "acts" : "shadow";
    text(q("#steered b"), words);
    pill.title = here ? "An intervention acted on the frame at the cursor; show which" : data.acting ? `${data.stale ? "When last heard, something" : "Something"} changed what this agent computes; show what` : "An effect is being measured; nothing is changed";
    if (data.acting !== header.acting && known(header.acting)) text(q("#said"), data.acting ? `Steered: ${data.acting} in force` : "Not steered any more");
    header.acting = data.acting;
    const button = q("#release-all");
    button.hidden = !data.stop;
    button.classList.toggle("needed", data.acting + data.measuring > 0);
    document.body.dataset.holds = data.stop ? "yes" : "no";
  }

  function answer(said) {
    answered = said.n;
    const op = pending.get(said.n);
    pending.delete(said.n);
    if (said.about === "all") say(said.text, !said.ok);
    else if (!said.ok && said.about === "release") say(said.text, true);
    else if (!said.ok) {
      text(q("#reach .refused"), said.text);
      if (!open) say(said.text, true);
    } else if (op === "apply") { q("#reach-unmeasured").checked = false; coming = said.text; }
    buttons();
  }

  function times() {
    const host = q("#reach-ttl"), most = data.policy.max_ttl_s ?? 300, list = TIMES.filter((s) => s <= most);
    if (!list.length || (list.at(-1) !== most && most < TIMES.at(-1))) list.push(most);
    const key = JSON.stringify(list);
    if (host.dataset.key === key) return;
    host.dataset.key = key;
    const value = Number(host.value) || 30;
    host.replaceChildren(...list.map((s) => { const o = node("option", "", seconds(s)); o.value = s; return o; }));
    host.value = String(list.includes(value) ? value : list.at(-1));
  }

  function environments() {
    const host = q("#reach-env"), key = String(data.envs);
    host.closest("label").hidden = data.envs < 2;
    if (host.dataset.key === key) return;
    host.dataset.key = key;
    const options = [["", "all of them"], ...Array.from({ length: Math.min(data.envs, 512) }, (_, i) => [String(i), `environment ${i}`])];
    host.replaceChildren(...options.map(([value, words]) => { const o = node("option", "", words); o.value = value; return o; }));
  }

  function suggestions() {
    const host = q("#reach-features"), rows = [...document.querySelectorAll(".rows li")].map((li) => [li.querySelector("[data-row]")?.dataset.row, li.querySelector(".l:not(.more)")?.textContent ?? ""]).filter(([row]) => row !== undefined);
    const key = JSON.stringify(rows);
    if (host.dataset.key === key) return;
    host.dataset.key = key;
    host.replaceChildren(...rows.map(([row, label]) => { const o = node("option"); o.value = row; o.label = label || `feature ${row}`; return o; }));
  }

  function formed() {
    const mine = data.form;
    if (!mine || mine.f !== f) { buttons(); return; }
    text(q("#reach-about"), mine.about.text);
    q("#reach-about").classList.toggle("wrong", !mine.about.known);
    if (mine.about.typical !== typical || mine.about.basis !== basis) {
      const { operation, strength } = form();
      ({ typical, basis } = mine.about);
      operated();
      if (form().strength !== strength && operation !== "ablate") changed();
    }
    text(q("#reach-problem"), mine.problem);
    trial(mine);
    buttons();
    if (later !== null && data.usable) { const op = later; later = null; go(op); }   // an agent that is slow to answer for a moment loses nothing
  }

  function trial(mine) {
    const host = q("#reach-trial"), t = mine.trial, key = JSON.stringify([t, mine.trying, data.policy.effect_hz === 0]);
    if (host.dataset.key === key) return;
    host.dataset.key = key;
    if (t) {
      const parts = [node("p", "", node("b", "", t.effect[0]), ` ${t.effect[1]} · ${t.times}`)];
      if (t.outcome) parts.push(outcome(t.outcome, "would"));
      host.replaceChildren(node("h3", "", "In shadow it measured"), ...parts);
    } else if (mine.trying) host.replaceChildren(node("p", "", mine.waits ? "Its condition has not held yet, so there is nothing to measure. Nothing is applied." : "Measuring … Nothing is applied."));
    else if (data.policy.effect_hz === 0) host.replaceChildren(node("p", "", "This agent does not measure effects (effect_hz is 0), so a shadow tells nothing."));
    else host.replaceChildren(node("p", "", "A shadow runs the model a second time and measures what this would do. The agent acts as it would."));
  }

  // Actions without and with: two bars each, the same measure, the difference in words.
  function outcome(o, how) {
    const table = node("table", "outcome"), share = o.measure === "share", most = Math.max(...o.rows.flatMap(([, w, x]) => [Math.abs(w), Math.abs(x)]), 1e-9);
    const percent = (v) => `${v > 0 && v < 0.005 ? "<\u202f1" : Math.round(100 * v)}\u202f%`, number = (v) => (share ? percent(v) : minus((v > 0 ? "+" : "") + v.toFixed(2)));
    const width = (v) => `${Math.max(1, Math.abs(v) / (share ? 1 : most) * 100).toFixed(1)}%`;
    const head = node("tr", "", node("th", "", "action"), node("th", "n", "without"), node("th", "n", how === "would" ? "it would" : "with"));
    for (const th of head.children) th.scope = "col";
    const rows = [...o.rows].sort((a, b) => (share ? Math.max(b[1], b[2]) - Math.max(a[1], a[2]) : Math.abs(b[1] - b[2]) - Math.abs(a[1] - a[2]))).slice(0, 6).sort((a, b) => o.rows.indexOf(a) - o.rows.indexOf(b));
    const cell = (v, kind) => { const bar = node("i", kind); bar.style.width = width(v); bar.setAttribute("aria-hidden", "true"); return node("td", "n", node("span", "", number(v)), node("span", "under", bar)); };
    table.append(node("thead", "", head), node("tbody", "", ...rows.map(([name, withIt, without]) => node("tr", "", node("th", "", name), cell(without, "without"), cell(withIt, "with")))));
    for (const th of table.querySelectorAll("tbody th")) th.scope = "row";
    if (o.rows.length > 6) table.append(node("caption", "", `6 of ${o.rows.length} that are told`));
    return table;
  }

  // what is in force

  function force() {
    const host = q("#reach-force"), ids = new Set(data.force.map((a) => a.id));
    for (const [id, card] of cards) if (!ids.has(id)) { const had = card.contains(document.activeElement); card.remove(); cards.delete(id); if (had) q("#reach").focus(); }
    q("#reach-none").hidden = data.force.length > 0;
    text(q("#reach-count"), data.force.length ? String(data.force.length) : "");
    text(q("#reach-none"), data.stale ? "The agent is silent; when last heard, nothing was in force." : data.stop || data.usable ? "Nothing. The agent acts by itself." : "Nothing.");
    data.force.forEach((a, i) => {
      if (!cards.has(a.id)) cards.set(a.id, card());
      const li = cards.get(a.id);
      if (host.children[i] !== li) host.insertBefore(li, host.children[i] ?? null);
      li.fill(a);
      if (a.id === coming) { coming = ""; li.scrollIntoView({ block: "nearest" }); }   // what was just applied comes in sight
    });
    const at = q("#reach-at"), here = (data.at ?? []).find((a) => a.outcome);
    at.hidden = !here;
    if (here && at.dataset.key !== JSON.stringify(here)) { at.dataset.key = JSON.stringify(here); at.replaceChildren(node("h3", "", "At the cursor"), outcome(here.outcome, here.shadow ? "would" : "with")); }
    clock();
  }

  function card() {
    const li = node("li", "act"), name = node("b", "f"), label = node("span", "l"), did = node("span", "did"), tag = node("span", "tag"), about = node("p", "by"), value = node("span", "value"), spark = sparkline();
    const bar = node("i"), remaining = node("span", "left"), end = node("button", "", "Release"), table = node("div", "table-of");
    const track = node("span", "track-of", bar);
    track.setAttribute("aria-hidden", "true");
    end.type = "button";
    li.append(node("p", "what", name, label, did, tag), about, node("p", "gauge", spark, value), table, node("p", "ends", track, remaining, end));
    let shown = "", id = "";
    end.addEventListener("click", () => { pending.set(send("release", { id }), "release"); end.disabled = true; });
    li.fill = (a) => {
      id = a.id;
      const waits = !a.holds, kind = a.shadow ? "SHADOW" : waits ? "WAITS" : "IN FORCE";
      li.dataset.kind = a.shadow ? "shadow" : waits ? "waits" : "acts";
      text(name, a.name); text(label, a.label); text(did, a.did); text(tag, kind);
      tag.title = a.shadow ? "Measured only: the agent acts as it would" : waits ? "Its condition does not hold now" : "Changes what the agent computes";
      text(about, [a.mine ? "by you, here" : `by ${a.author}`, a.when ? `only when ${a.when}` : "", known(a.env) ? `environment ${a.env}` : "", a.reason ? `“${a.reason}”` : ""].filter(Boolean).join(" · "));
      text(value, a.effect.length ? [...a.effect, a.turned].filter(Boolean).join(" · ") : waits ? "waits for its condition" : "not measured yet");
      spark.draw(a.values);
      li.ends = known(a.ends) ? a.ends - data.now : null;
      li.ttl = a.ttl;
      if (known(a.ends)) { const at = told + li.ends; if (!known(li.at) || Math.abs(li.at - at) > 400) li.at = at; } else li.at = null;
      end.hidden = !data.may;
      end.setAttribute("aria-label", `Release ${a.name} ${a.did}`);
      const key = JSON.stringify([a.outcome, a.mine && a.shadow]);
      if (key !== shown) { shown = key; table.replaceChildren(...(a.outcome && !(a.mine && a.shadow) ? [   // that of one's own shadow stands above
outcome(a.outcome, a.shadow ? "would" : "with")] : [])); }
    };
    li.bar = bar;
    li.remaining = remaining;
    return li;
  }

  function sparkline() {
    const NS = "http://www.w3.org/2000/svg", svg = document.createElementNS(NS, "svg"), line = document.createElementNS(NS, "polyline");
    svg.setAttribute("viewBox", "0 0 100 24");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    line.setAttribute("vector-effect", "non-scaling-stroke");
    svg.append(line);
    svg.draw = (values) => {
      const most = Math.max(...values, 1e-9);
      svg.setAttribute("aria-label", values.length ? `Effect over time, ${values.length} measurements, most ${short(most)}` : "No effect measured yet");
      line.setAttribute("points", values.map((v, i) => `${(values.length > 1 ? i / (values.length - 1) * 100 : 0).toFixed(1)},${(23 - v / most * 22).toFixed(1)}`).join(" "));
    };
    return svg;
  }

  let ticking = null;
  function timer() { ticking ??= setInterval(() => { if (open) clock(); else { clearInterval(ticking); ticking = null; } }, 250); }
  function clock() {
    for (const li of cards.values()) {
      const s = known(li.at) ? Math.max(0, (li.at - performance.now()) / 1000) : null;
      text(li.remaining, s === null ? "" : `${left(s)} left`);
      li.bar.style.width = s === null || !li.ttl ? "0" : `${Math.min(100, s / li.ttl * 100).toFixed(1)}%`;
    }
  }

  // What was before: a line each; a click goes to where it began.
  function reached(source) {
    past = JSON.parse(source.data.json[0]);
    const host = q("#reach-before");
    q("#reach-before-head").hidden = !past.length;
    const focused = document.activeElement?.dataset?.past;
    host.replaceChildren(...past.map((a) => {
      const go = node("button", "go");
      go.type = "button";
      go.dataset.past = a.id;
      go.title = known(a.seq) ? "Show where it began" : "";
      const ended = [a.cause || "its end was not heard", known(a.lasted) ? `after ${left(a.lasted)}` : ""].filter(Boolean).join(" ");
      go.append(node("b", "f", a.name), node("span", "did", a.did), a.shadow ? node("span", "tag", "SHADOW") : "", node("span", "value", a.effect[0] ?? ""), node("span", "by", [known(a.t) ? `${Math.floor(a.t / 60)}:${String(Math.floor(a.t % 60)).padStart(2, "0")}` : "", ended, a.reason ? `“${a.reason}”` : ""].filter(Boolean).join(" · ")));
      go.addEventListener("click", () => { if (known(a.seq)) window.itime.seek(a.seq); });
      return node("li", "", go);
    }));
    if (focused !== undefined) [...host.querySelectorAll("button")].find((b) => b.dataset.past === focused)?.focus();
  }

  function lost() { document.body.dataset.reachGone = "yes"; stop(); }

  return { ready, show, reached, toggle, choose, all, lost, data: () => data };
})();
