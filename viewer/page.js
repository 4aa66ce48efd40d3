"use strict";
// What the browser does by itself: texts by textContent (so nothing of a run's is ever markup), the picture, the moving window, the colours.
window.ilive = (() => {
  const { node } = window.imake;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const all = (query) => document.querySelectorAll(query);
  let models = null;
  let rows = [];

  function colours() {
    if (!models) return;
    const glyphs = models.glyphs instanceof Map ? models.glyphs.get(dark.matches ? "dark" : "light") : models.glyphs[dark.matches ? "dark" : "light"];
    const get = (role) => (glyphs instanceof Map ? glyphs.get(role) : glyphs[role]);
    models.models.forEach((model, i) => {
      const [attr, role] = models.roles[i];
      const value = get(role);
      const glyph = attr.endsWith("_color") && model.properties[attr].get_value?.() !== undefined && typeof model[attr] === "object" && model[attr] !== null;
      model.setv({ [attr]: glyph ? { value } : value }, { sync: false });
    });
    window.idraw.colours(get);
    window.itime.colours();
  }

  function ready(args) {
    models = args;
    colours();
    dark.addEventListener("change", colours);
    if (args.state.data.json[0]) state(args.state);
    picture(args.picture);
    if (args.why.data.json[0]) window.iwhy.show(args.why);
    window.itokens.ready();
    window.ipairs.ready();
    if (args.tokens.data.json[0]) window.itokens.show(args.tokens);
    if (args.prompts.data.json[0]) window.itokens.prompts(args.prompts);
    if (args.pair.data.json[0]) window.ipairs.show(args.pair);
    if (args.asked.data.json[0]) window.ipairs.box(args.asked);
    window.idraw.ready(args);
    if (args.timeline.data.json[0]) timeline(args.timeline);
    frames(args.frames);
    window.ilists.ready();
    if (args.features.data.json[0]) window.ilists.features(args.features);
    window.ikeys.ready();
    window.ifind.ready();
    window.isave.ready(args);
    window.ireach.ready(args);
    for (const name of ["env", "source", "boot"]) {
      document.querySelector(`[data-select=${name}]`).addEventListener("change", (e) => {
        window.itime.send({ op: "look", [name]: name === "env" ? Number(e.target.value) : e.target.value, ...(name === "boot" ? { at: null } : {}) });
      });
    }
    window.itime.ready(args.control);
    window.ilearn.ready();
    window.iline.ready(args.line);
  }

  let told = false;
  function frames(source) {
    if (!models || !source.data.json[0]) return;
    window.idraw.frames(source);
    const p = JSON.parse(source.data.json[0]);
    if (!told) window.ilists.tab(p.tab);   // as the address says; afterwards it is chosen here
    told = true;
    window.itime.moved(p);
    window.itokens.moved(p);
  }

  function timeline(source) { window.itime.timeline(JSON.parse(source.data.json[0])); }

  function picture(source) {
    const jpeg = source.data.jpeg[0], img = document.querySelector(".picture img"), before = img.src;
    img.hidden = !jpeg?.length;
    if (jpeg?.length) img.src = URL.createObjectURL(new Blob([jpeg], { type: "image/jpeg" })); else img.removeAttribute("src");
    if (before) URL.revokeObjectURL(before);
  }

  function text(element, value) {
    if (element.textContent !== value) element.textContent = value;
  }

  // A narrow space parts a number from its unit; the unit is set lighter.
  function quantity(element, value) {
    if (element.textContent === value) return;
    const at = value.indexOf("\u202f");
    if (at < 0) { element.textContent = value; return; }
    element.replaceChildren(value.slice(0, at), node("span", "u", value.slice(at)));
  }

  function state(source) {
    const s = JSON.parse(source.data.json[0]);
    const body = document.body;
    body.dataset.view = s.view;
    body.dataset.state = s.state;
    body.dataset.neurons = s.neurons ? "yes" : "no";
    all("b[data-state]").forEach((e) => text(e, s.state));
    all("[data-db]").forEach((e) => text(e, s.db));
    all("[data-text]").forEach((e) => {
      const value = s.text[e.dataset.text];
      if (value !== undefined && !(e.dataset.text === "run" && value === "")) quantity(e, e.dataset.text === "steps" ? window.itokens.words(value) : value);
    });
    if (s.text.agent === s.text.run) text(document.querySelector("[data-text=agent]"), "");
    const note = document.querySelector(".note");
    note.hidden = !s.note || s.view !== "running" || (s.state === "ENDED" && !s.calm);
    note.classList.toggle("calm", s.calm);
    document.querySelector(".pill").title = s.note;
    text(document.querySelector("#golive"), s.state === "ENDED" ? "GO TO END" : "GO LIVE");
    text(note, s.note);
    text(document.querySelector(".why-not"), s.note);
    document.title = (s.state === "LIVE" ? "● " : "") + (s.text.run ? s.text.run + " – " : "") + "Interlatent Live";
    document.querySelector(".picture img").alt = `${s.text.environment} at episode ${s.text.episode}, step ${s.text.step}`;
    all("[data-lacks]").forEach((e) => {
      const what = e.dataset.lacks;
      const hidden = s.has[what] || (what === "correlations" && !s.has.metrics);
      e.classList.toggle("lacks", !hidden);
    });
    body.dataset.stale = s.stale ? "yes" : "no";
    body.dataset.says = s.has.explainer ? "yes" : "no";
    body.dataset.versions = s.has.versions ? "yes" : "no";
    all("[data-stale-why]").forEach((e) => text(e, s.stale));
    select("env", s.envs > 1 ? Array.from({ length: Math.min(s.envs, 512) }, (_, i) => [String(i), `environment ${i} of ${s.envs}`]) : [], String(s.env));
    window.ilearn.show(s.learn);
    select("source", Object.keys(s.sources).length > 1 ? Object.entries(s.sources) : [], s.source);
    window.ifind.about(s);
    labels(s.rows);
    window.idraw.pairs(s.pairs);
    select("boot", s.boots.length > 1 ? s.boots : [], s.boot);
    window.ilists.lines(s.lines);
    scalars(s.scalars);
    titles(s.pairs);
    flow(s.flow);
    body.dataset.trouble = s.trouble ? "yes" : "no";
    values(document.querySelector(".services"), s.services);
    costs = s.vitals;
    values(document.querySelector(".vitals"), [...measured, ...costs]);
  }

  function select(name, options, value) {
    const element = document.querySelector(`[data-select=${name}]`), key = JSON.stringify(options);
    element.hidden = !options.length;
    if (element.dataset.key !== key) {
      element.dataset.key = key;
      element.replaceChildren(...options.map(([id, label]) => { const o = node("option", "", label); o.value = id; return o; }));
    }
    if (document.activeElement !== element && element.value !== value) element.value = value;
  }

  // Names at the left of the raster's rows, shares at their right. A name pins its feature.
  function labels(list) {
    const key = JSON.stringify([list, window.ifind.href(0)]);
    const host = document.querySelector(".rows");
    if (host.dataset.key === key) return;
    host.dataset.key = key;
    rows = list;
    const said = list.some((row) => row.said), focused = document.activeElement?.dataset?.row;
    document.querySelector("main").classList.toggle("labelled", said);
    window.idraw.rows(list.length);
    const empty = Array.from({ length: Math.max(0, 8 - list.length) }, () => node("li"));
    host.replaceChildren(...list.map((row) => {
      const item = node("li"), name = node("button", "n");
      name.dataset.row = row.feature;
      name.setAttribute("aria-pressed", String(row.pinned));
      name.title = "Pin or unpin";
      name.append(node("span", "pin"), node("b", "", row.name));
      const more = node("a", "o");
      more.href = window.ifind.href(row.feature);
      more.title = row.said ? `${row.said.about}\nClick for everything about it` : "Everything about it";
      more.append(node("span", "sr", `${row.name} `));
      if (row.said) more.append(node("span", "l", row.said.label), node("span", row.said.stale ? "s stale" : "s", row.said.score));
      else more.append(node("span", "l more", "about it"));
      name.addEventListener("click", () => window.itokens.active() ? window.itokens.choose(row.feature) : window.itime.send({ op: "pin", what: String(row.feature) }));
      item.append(name, more, node("span", "d", row.duty));
      return item;
    }), ...empty);
    if (focused !== undefined) host.querySelector(`[data-row="${focused}"]`)?.focus();
    window.itokens.mark();
  }

  // What the training loop logs: a small line each.
  function scalars(list) {
    const host = document.querySelector(".scalars"), key = JSON.stringify(list);
    document.querySelector(".learns").hidden = !list.length;
    if (host.dataset.key === key) return;
    host.dataset.key = key;
    host.replaceChildren(...list.map((s) => {
      const item = node("div"), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      item.append(node("dt", "", s.name), node("dd", "", s.value));
      svg.setAttribute("viewBox", "0 0 100 24");
      svg.setAttribute("preserveAspectRatio", "none");
      svg.setAttribute("aria-hidden", "true");
      if (s.points.length > 1) {
        const xs = s.points.map((p) => p[0]), ys = s.points.map((p) => p[1]), low = Math.min(...ys), high = Math.max(...ys);
        const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
        const x = (v) => (v - xs[0]) / (xs.at(-1) - xs[0] || 1) * 100, y = (v) => 22 - (v - low) / (high - low || 1) * 20;
        line.setAttribute("points", s.points.map((p) => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join(" "));
        line.setAttribute("vector-effect", "non-scaling-stroke");
        svg.append(line);
      }
      item.append(svg);
      return item;
    }));
  }

  function titles(list) {
    const host = document.querySelector(".titles"), key = JSON.stringify(list);
    if (host.dataset.key === key) return;
    const focused = document.activeElement?.dataset?.pin;
    host.dataset.key = key;
    host.replaceChildren(...list.map((p, i) => {
      const made = node("h3"), pin = node("button");
      made.dataset.pair = i;
      pin.dataset.pin = p.pin;
      pin.title = p.pinned ? "Unpin" : "Pin: keep this strip";
      pin.setAttribute("aria-label", `Pin ${[p.feature, p.metric].filter(Boolean).join(" and ")}`);
      pin.setAttribute("aria-pressed", String(p.pinned));
      pin.append(node("span", "pin"));
      pin.addEventListener("click", () => window.itime.send({ op: "pin", what: p.pin }));
      made.append(pin);
      if (p.feature) made.append(node("b", "f", p.label ? `${p.feature} ${p.label}` : p.feature));
      if (p.metric) made.append(node("b", "m", p.unit ? `${p.metric}, ${p.unit}` : p.metric));
      if (p.r) made.append(node("b", "r", p.r));
      if (p.r && p.interval) made.lastChild.append(node("span", "i", "  " + p.interval));
      made.title = [p.label, p.metric, p.r, p.interval].filter(Boolean).join(" · ");
      return made;
    }));
    if (focused !== undefined) [...host.querySelectorAll("button")].find((b) => b.dataset.pin === focused)?.focus();
  }

  function flow(stages) {
    const list = document.querySelector(".flow");
    if (list.children.length !== stages.length) {
      list.replaceChildren(...stages.map(() => {
        const item = node("li");
        const box = node("div");
        box.append(node("span", "count"), node("span", "name"));
        item.append(box);
        return item;
      }));
    }
    stages.forEach((stage, i) => {
      const item = list.children[i];
      item.className = stage.kind === "none" ? "none_" : stage.kind;
      item.title = stage.about;
      text(item.querySelector(".count"), stage.count);
      text(item.querySelector(".name"), stage.name);
    });
  }

  let costs = [], measured = [];
  // What this page measures itself: the age of what it draws.
  function aged(mid, worst) {
    const ms = (v) => (v === null ? "–" : `${Math.round(v)}\u202fms`);
    measured = [{ name: "age of what is drawn here, median", value: ms(mid) }, { name: "age of what is drawn here, p99", value: ms(worst), kind: worst > 250 ? "bad" : "" }];
    values(document.querySelector(".vitals"), [...measured, ...costs]);
  }

  function values(list, rows) {
    if (list.children.length !== rows.length) {
      list.replaceChildren(...rows.map(() => {
        const item = node("div");
        item.append(node("dt"), node("dd"));
        return item;
      }));
    }
    rows.forEach((v, i) => {
      list.children[i].className = v.kind ?? "";
      list.children[i].title = v.about ?? "";
      text(list.children[i].children[0], v.name);
      quantity(list.children[i].children[1], v.value);
    });
  }

  // The page's server is gone: say so, and begin anew as soon as it answers again.
  let gone = false;
  function lost() {
    if (gone) return;
    gone = true;
    window.idraw.gone();
    window.ireach.lost();
    document.body.dataset.state = "STALE";
    all("b[data-state]").forEach((e) => text(e, "STALE"));
    const note = document.querySelector(".note");
    note.hidden = false;
    note.classList.remove("calm");
    text(note, "The server of this page does not answer; this page comes back by itself when it does.");
    const again = setInterval(() => {
      fetch(location.href, { method: "HEAD", cache: "no-store" }).then(() => { clearInterval(again); location.reload(); }, () => {});
    }, 1000);
  }

  return { ready, lost, state, why: (source) => window.iwhy.show(source), tokens: (source) => window.itokens.show(source), prompts: (source) => window.itokens.prompts(source), pair: (source) => window.ipairs.show(source), asked: (source) => window.ipairs.box(source), reach: (source) => window.ireach.show(source), reached: (source) => window.ireach.reached(source), picture, frames, timeline, aged, features: (source) => window.ilists.features(source), file: (source) => window.isave.file(source), row: (i) => rows[i] };
})();
