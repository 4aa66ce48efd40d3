"use strict";
// The keyboard, and the dialog that lists it.
window.ikeys = (() => {
  const q = (query) => document.querySelector(query);

  function ready() {
    document.addEventListener("keydown", key);
    q("#help").addEventListener("click", help);
  }

  function help() { const dialog = q("#keys"); if (!dialog.open) dialog.showModal(); }

  function key(e) {
    const where = e.target, typing = /^(SELECT|TEXTAREA)$/.test(where.tagName) || (where.tagName === "INPUT" && where.type !== "range");
    if (e.ctrlKey || e.metaKey || e.altKey || typing || q("#keys").open) return;
    if (e.key === "?") { e.preventDefault(); help(); return; }
    if (e.key === "x") { e.preventDefault(); window.ireach.all(); return; }
    if (document.body.dataset.view !== "running") return;
    const button = where.tagName === "BUTTON", t = window.itime;
    const act = {
      ArrowLeft: () => t.step(e.shiftKey ? -10 : -1),
      ArrowRight: () => t.step(e.shiftKey ? 10 : 1),
      PageUp: () => t.episode(-1),
      PageDown: () => t.episode(1),
      Home: () => t.first(),
      End: () => t.live(),
      g: () => t.live(),
      "-": () => t.faster(-1),
      "−": () => t.faster(-1),
      "+": () => t.faster(1),
      "=": () => t.faster(1),
      "[": () => t.loopFrom(),
      "]": () => t.loopTo(),
      l: () => t.unloop(),
      "/": () => window.ilists.search(),
      c: () => q("#clip").click(),
      r: () => window.ireach.toggle(),
    }[e.key];
    const scrolls = where.matches?.(".lines, .table, .health") && /^(Page|Home|End)/.test(e.key);
    if (e.key === " " && !button) t.toggle();
    else if (/^[1-5]$/.test(e.key)) window.ilists.choose(window.ilists.TABS[Number(e.key) - 1]);
    else if (act && !scrolls) act();
    else return;
    e.preventDefault();
  }

  return { ready, help };
})();
