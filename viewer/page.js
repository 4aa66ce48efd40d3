"use strict";
// What the browser does by itself: texts by textContent (so nothing of a run's is ever markup), the picture, the moving window, the colours.
window.ilive = (() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const all = (query) => document.querySelectorAll(query);
  let models = null;
  let newest = null;   // frame time of the newest frame, s
  let shown = null;    // right edge of the window, s
  let arrived = 0;     // when `newest` came, ms of this page's clock

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
  }

  function ready(args) {
    models = args;
    colours();
    dark.addEventListener("change", colours);
    if (args.state.data.json[0]) state(args.state);
    picture(args.picture);
    frames(args.strips);
    requestAnimationFrame(move);
  }

  function frames(source) {
    const t = source.data.t;
    newest = t.length ? t[t.length - 1] : null;
    arrived = performance.now();
    if (newest === null || (shown !== null && Math.abs(newest - shown) > 5)) shown = newest;
  }

  // The window follows the newest frame at the speed of time, so it glides instead of hopping with each message.
  // Where the browser keeps up it moves twenty times a second, else ten.
  let last = 0;
  let frame = 0;       // time of the last animation frame, ms
  let pace = 16;       // smoothed time between animation frames, ms
  function move(now) {
    requestAnimationFrame(move);
    pace += 0.05 * (Math.min(now - frame, 200) - pace);
    frame = now;
    if (newest === null || now - last < (pace < 24 ? 48 : 96) || document.hidden) return;
    const dt = Math.min(0.5, (now - last) / 1000);
    last = now;
    if (shown === null) shown = newest;
    const behind = newest - shown;                       // s of data not yet in sight
    const speed = Math.max(0, 1 + 1.5 * (behind - 0.15)); // keep 0.15 s in hand
    const next = Math.min(newest, shown + dt * speed);
    const end = Math.max(next, models.span);
    shown = next;
    if (Math.abs(models.x.end - end) > 1e-3) models.x.setv({ start: end - models.span, end }, { sync: false });
  }

  function picture(source) {
    const uri = source.data.uri[0];
    const img = document.querySelector(".picture img");
    img.hidden = !uri;
    if (uri) img.src = uri; else img.removeAttribute("src");
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

  function node(tag, name, value) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (value !== undefined) made.textContent = value;
    return made;
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
      if (value !== undefined && !(e.dataset.text === "run" && value === "")) quantity(e, value);
    });
    const note = document.querySelector(".note");
    note.hidden = !s.note || s.view !== "running";
    note.classList.toggle("calm", s.state === "ENDED");
    text(note, s.note);
    text(document.querySelector(".why"), s.note);
    document.title = (s.state === "LIVE" ? "● " : "") + (s.text.run ? s.text.run + " – " : "") + "Interlatent Live";
    document.querySelector(".picture img").alt = `${s.text.environment} at episode ${s.text.episode}, step ${s.text.step}`;
    all("[data-lacks]").forEach((e) => {
      const what = e.dataset.lacks;
      const hidden = s.has[what] || (what === "correlations" && !s.has.metrics);
      e.classList.toggle("lacks", !hidden);
    });
    all("[data-pair]").forEach((e) => pair(e, s.pairs[Number(e.dataset.pair)]));
    flow(s.flow);
    vitals(s.vitals);
  }

  function pair(element, p) {
    const key = JSON.stringify(p);
    if (element.dataset.key === key) return;
    element.dataset.key = key;
    element.replaceChildren();
    if (!p) return;
    element.append(node("b", "f", p.feature));
    if (p.metric) element.append(node("b", "m", p.unit ? `${p.metric}, ${p.unit}` : p.metric));
    if (p.r) element.append(node("b", "r", p.r));
    element.append(node("span", "i", p.metric ? p.interval : "no significant correlation yet"));
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

  function vitals(values) {
    const list = document.querySelector(".vitals");
    if (list.children.length !== values.length) {
      list.replaceChildren(...values.map(() => {
        const item = node("div");
        item.append(node("dt"), node("dd"));
        return item;
      }));
    }
    values.forEach((v, i) => {
      text(list.children[i].children[0], v.name);
      quantity(list.children[i].children[1], v.value);
    });
  }

  // The page's server is gone: say so, and begin anew as soon as it answers again.
  let gone = false;
  function lost() {
    if (gone) return;
    gone = true;
    newest = null;
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

  return { ready, lost, state, picture, frames, age: () => performance.now() - arrived };
})();
