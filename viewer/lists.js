"use strict";
// The right column: tabs, sentences, and the list of features and metrics.
window.ilists = (() => {
  const { node } = window.imake;
  const q = (query) => document.querySelector(query), all = (query) => [...document.querySelectorAll(query)];
  const TABS = ["says", "goes", "features", "ask", "health"];
  let list = [], found = window.ifind.state.find ?? "", shown = "says", naming = null, writes = null;

  function ready() {
    all("[role=tab]").forEach((tab, i, tabs) => {
      tab.addEventListener("click", () => choose(TABS[i]));
      tab.addEventListener("keydown", (e) => {
        const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tabs.length - 1 }[e.key];
        if (to === undefined) return;
        e.preventDefault();
        e.stopPropagation();
        const next = (to + tabs.length) % tabs.length;
        choose(TABS[next]);
        tabs[next].focus();
      });
    });
    q("#search").addEventListener("input", (e) => { found = e.target.value; fill(); });
    q("#search").addEventListener("keydown", (e) => { if (e.key === "Escape") { e.target.value = found = ""; e.target.dispatchEvent(new Event("input")); e.target.blur(); } });
    const table = q(".table");
    table.addEventListener("pointerenter", () => window.itime.send({ op: "hold", on: true }));
    table.addEventListener("pointerleave", () => window.itime.send({ op: "hold", on: false }));
  }

  // One tab, here and in the server's mind.
  function choose(name) {
    tab(name);
    window.itime.send({ op: "tab", to: name });
  }

  function tab(name) {
    if (name === shown) return;
    shown = name;
    if (name === "features") may();
    TABS.forEach((other) => {
      const on = other === name, button = q(`#tab-${other}`);
      button.setAttribute("aria-selected", String(on));
      button.tabIndex = on ? 0 : -1;
      q(`#panel-${other}`).hidden = !on;
    });
  }

  function search() {
    choose("features");
    q("#search").focus();
    q("#search").select();
  }

  function features(source) {
    list = JSON.parse(source.data.json[0] || "[]");
    fill();
  }

  // Whether names can be written here; asked once.
  async function may() {
    if (writes !== null) return;
    writes = false;
    try { writes = !(await (await fetch("/writing", { cache: "no-store" })).json()).why; } catch { writes = null; }
    if (writes) { delete q(".table tbody").dataset.key; fill(); }
  }

  // A feature's name is typed in its row; Enter keeps it, Escape leaves it.
  function rename(f, cell) {
    const form = node("form", "renaming"), input = node("input"), wrong = node("p", "wrong"), leave = () => { naming = null; delete q(".table tbody").dataset.key; fill(); all(".table .pen").find((b) => b.dataset.pen === pen(f))?.focus(); };
    naming = pen(f);
    input.value = f.label;
    input.maxLength = 80;
    input.setAttribute("aria-label", `Name for ${f.name}, at most six words; Escape leaves it`);
    wrong.setAttribute("role", "alert");
    input.addEventListener("keydown", (e) => { e.stopPropagation(); if (e.key === "Escape") leave(); });
    form.append(input, node("button", "", "Save"), wrong);
    form.addEventListener("submit", async (e) => {
      e.preventDefault();
      let said;
      try {
        const author = localStorage.getItem("interlatent-author") ?? "";
        said = await (await fetch(window.ifind.href(f.by.feature, f.hash), { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ do: "name", label: input.value, author }) })).json();
      } catch { said = { error: "The server of this page does not answer." }; }
      if (said.error) { wrong.textContent = said.error; return; }
      f.label = said.label ?? "";
      leave();
    });
    cell.replaceChildren(form);
    input.focus();
    input.select();
  }
  const pen = (f) => `${f.layer ?? ""} ${f.name}`;

  function fill() {
    if (naming !== null && q(".renaming")) return;   // what is being typed stays
    const words = found.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = window.ifind.pick(list, words);
    const key = JSON.stringify([rows, window.ifind.href(0)]), host = q(".table tbody");
    q(".nothing").hidden = rows.length > 0 || !list.length;
    if (host.dataset.key === key) return;
    host.dataset.key = key;
    const focused = document.activeElement?.closest?.(".table button")?.dataset.pin;
    host.replaceChildren(...rows.map((f) => {
      const row = node("tr", f.kind), pin = node("button"), cell = node("td"), what = node("td");
      pin.dataset.pin = f.pin;
      pin.disabled = f.pin === "";
      if (pin.disabled) pin.title = "Of another layer than the one that is shown: look at that one to pin it";
      pin.setAttribute("aria-pressed", String(f.pinned));
      pin.setAttribute("aria-label", `Pin ${f.name || f.label}`);
      pin.append(node("span", "pin"));
      pin.addEventListener("click", () => window.itime.send({ op: "pin", what: f.pin }));
      cell.append(pin);
      if (f.name) {
        const more = node("a");
        more.href = window.ifind.href(f.by.feature, f.hash);
        more.append(node("span", "who-is", f.name), f.label);
        what.append(more);
        if (writes) {
          const change = node("button", "pen", "✎");
          change.dataset.pen = pen(f);
          change.title = "Rename";
          change.setAttribute("aria-label", `Rename ${f.name}`);
          change.addEventListener("click", () => rename(f, what));
          what.append(" ", change);
        }
        if (f.point) what.append(node("small", "point", f.point));
      } else what.append(f.label);
      if (f.about) what.title = f.about;
      const goes = node("td", "r", f.goes);
      if (f.kind === "feature" && f.pin !== "") {   // numbers of another layer's features are not those that are steered here
        const reach = node("button", "reach-in", "reach in");
        reach.dataset.reach = f.by.feature;
        reach.setAttribute("aria-label", `Reach in: ${f.name}`);
        reach.addEventListener("click", () => window.ireach.choose(f.by.feature));
        goes.append(reach);
      }
      row.append(cell, what, node("td", f.stale ? "n stale" : "n", f.score), node("td", "n", f.share), goes);
      return row;
    }));
    if (focused !== undefined) all(".table button").find((b) => b.dataset.pin === focused)?.focus();
  }

  // Sentences: pointing at one shows its time, a click goes there.
  function lines(said) {
    const host = q(".lines"), key = JSON.stringify([said, document.body.dataset.language]);
    if (host.dataset.key === key) return;
    host.dataset.key = key;
    host.replaceChildren(...said.map((line) => {
      const item = node("li", `k-${/^[a-z]+$/.test(line.kind) ? line.kind : "other"}`), go = node("button", "go", window.itokens.words(`${line.time} · episode ${line.episode} · step ${line.step}`));
      go.title = "Show this moment";
      const show = () => window.itime.preview(line.seq, line.t), hide = () => window.itime.preview(null);
      item.addEventListener("pointerenter", show);
      item.addEventListener("pointerleave", hide);
      go.addEventListener("focus", show);
      go.addEventListener("blur", hide);
      item.addEventListener("click", () => { if (!getSelection().toString()) window.itime.seek(line.seq); });
      item.append(go, node("span", "kind", window.itokens.words(line.kind)), node("p", "", line.text));
      if (line.wording) item.append(node("p", "worded", `${line.by} says: ${line.wording}`));
      if (line.chips.length) {
        const chips = node("p", "chips");
        line.chips.forEach((c) => {
          const chip = node("span", c.score === "unscored" ? "chip un" : "chip");
          chip.append(node("b", "", c.feature), c.label ? ` ${c.label} ` : " ", node("i", "", c.score));
          chips.append(chip);
        });
        item.append(chips);
      }
      return item;
    }));
  }

  return { ready, choose, tab, search, features, fill, lines, TABS };
})();
