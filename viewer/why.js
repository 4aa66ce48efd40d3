"use strict";
// Why this action: one block for each action, a bar for its score and a line for each part. Blocks keep their places; texts by textContent.
window.iwhy = (() => {
  const { node } = window.imake;
  const q = (query) => document.querySelector(query);

  // A bar from the middle for what has a sign, from the left for what has none.
  function bar(value, signed, kind) {
    const track = node("i", `bar ${kind}${signed ? " signed" : ""}`), fill = node("i", value < 0 ? "minus" : "plus");
    const width = Math.min(1, Math.abs(value)) * (signed ? 50 : 100);
    fill.style.width = `${width.toFixed(1)}%`;
    fill.style.left = !signed ? "0" : value < 0 ? `${(50 - width).toFixed(1)}%` : "50%";
    track.setAttribute("aria-hidden", "true");
    track.append(fill);
    return track;
  }

  function part(p) {
    const item = node("li", p.kind), name = node("span", "n");
    item.title = p.about;
    if (p.name) name.append(node("b", "", p.name), p.label ? ` ${p.label}` : "");
    else name.textContent = p.label;
    item.append(name, bar(p.bar, true, p.kind), node("span", "v", p.text));
    return item;
  }

  function score(a, rank) {
    const head = node("div", "score"), name = node("span", "n", a.name);
    if (rank) name.append(node("small", "", rank));
    head.title = a.about;
    head.append(name, bar(a.bar, a.signed, "total"), node("span", "v", a.value));
    return head;
  }

  function action(a) {
    const block = node("li", a.chosen ? "chosen" : ""), parts = node("ol", "parts");
    parts.append(...a.parts.map(part));
    block.append(score(a, a.rank || (a.chosen ? "taken" : "")), parts);
    return block;
  }

  // Where there are many: all of them in the model's order, a line each, below the two that are taken apart.
  function line(a) {
    const item = node("li", a.chosen ? "chosen line" : "line");
    item.append(score(a, a.chosen ? "taken" : ""));
    return item;
  }

  function show(source) {
    const w = JSON.parse(source.data.json[0]), panel = q(".why");
    panel.dataset.why = w.state;
    q(".why-note").textContent = w.state === "none" ? "" : w.note || w.unit;
    q(".why-none span").textContent = w.reason;
    q(".why-none code").textContent = w.code;
    q(".actions").replaceChildren(...w.actions.map(action), ...w.all.map(line));
  }

  return { show };
})();
