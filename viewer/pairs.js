"use strict";
// The box to try a prompt, and two texts side by side: plain and steered. Everything a model wrote goes in by textContent.
window.ipairs = (() => {
  const { node, signed, visible } = window.imake;
  const [SEQ, TEXT, KIND, LOGPROB, VALUE, TOP, KL] = Array(7).keys();
  const q = (query) => document.querySelector(query);
  let shown = null, asked = null, n = 0, hosts = [];

  const called = (feature) => `${shown.letter}${feature}`;
  const label = (feature) => shown.labels[feature] ?? "";
  const nat = (v) => (v === null || v === undefined ? "–" : `${signed(v)}\u202fnat`);
  const send = (command) => window.itime.send(command);

  function ready() {
    const form = q("#try-prompt");
    form.addEventListener("submit", (e) => { e.preventDefault(); ask(e.submitter?.id === "try-both"); });
    q("#try-stop").addEventListener("click", () => send({ op: "ask", stop: true }));
    q("#try-operation").addEventListener("change", strength);
    q("#try-text").addEventListener("keydown", (e) => { if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); form.requestSubmit(q("#try-feature").value ? q("#try-both") : q("#try-plain")); } });
    q("#try-feature").addEventListener("input", both);
    q(".pair .back").addEventListener("click", () => send({ op: "pair", to: null }));
    q(".try-why .copy").addEventListener("click", () => navigator.clipboard?.writeText(q(".try-why code").textContent));
    for (const host of document.querySelectorAll(".pair .side")) {
      host.addEventListener("pointerover", (e) => tip(e, e.target.closest?.("[data-i]")));
      host.addEventListener("pointerleave", () => tip(null));
      host.addEventListener("click", (e) => { const at = e.target.closest?.("[data-i]"); if (at && getSelection().isCollapsed) go(host, at); });
    }
    strength();
    both();
  }

  function strength() { q("#try-strength").disabled = q("#try-operation").value === "ablate" || q("#try-prompt fieldset").disabled; }
  function both() { q("#try-both").disabled = !q("#try-feature").value.trim(); }

  function ask(with_both) {
    const feature = q("#try-feature").value.trim();
    send({
      op: "ask", n: Date.now() + (n++ % 7), text: q("#try-text").value, tokens: Math.round(Number(q("#try-tokens").value)), chat: q("#try-chat").checked,
      feature: feature === "" ? null : Math.round(Number(feature)), operation: q("#try-operation").value, strength: Number(q("#try-strength").value), both: with_both,
    });
  }

  // Whether the box can be used, and how far it is.
  function box(source) {
    asked = JSON.parse(source.data.json[0]);
    q("#try-prompt fieldset").disabled = !asked.may || asked.busy;
    q(".try-why").hidden = asked.may;
    if (!asked.may) { q(".try-why p").textContent = asked.why[0]; q(".try-why code").textContent = asked.why[1]; q(".try-why div").hidden = !asked.why[1]; }
    q("#try-stop").hidden = !asked.busy;
    const said = q(".try-said");
    said.textContent = asked.message;
    said.classList.toggle("wrong", asked.bad);
    q("#try-tokens").max = asked.most;
    q("#try-feature").max = Math.max(0, asked.features - 1);
    q(".try-change").hidden = !asked.may || !asked.features;
    strength();
    both();
  }

  function show(source) {
    const m = JSON.parse(source.data.json[0]);
    const before = shown;
    shown = m.name === null ? null : m;
    document.body.dataset.pair = shown ? "yes" : "no";
    if (!shown) { if (before) window.itokens.heading(); return; }
    const sides = [...document.querySelectorAll(".pair .side")];
    hosts = sides;
    q(".pair").classList.toggle("alone", !m.pair);
    q(".pair .what").textContent = m.pair ? "With and without" : m.arms[0]?.arm === "steered" ? "Steered" : "Tried";
    q(".pair .acts-said").textContent = m.acts.join(", ");
    sides.forEach((side, k) => column(side, k, before && before.name === m.name ? before : null));
    q(".pair .verdict").textContent = verdict();
    const by = q(".reads .by");
    by.textContent = m.chosen === null ? "each token’s strongest feature" : [called(m.chosen), label(m.chosen)].filter(Boolean).join(" ");
    q(".reads .reset").hidden = m.chosen === null;
    q(".reads .most").textContent = signed(m.scale, 2);
    q(".reads .least").textContent = "0";
  }

  function column(side, k, before) {
    const arm = shown.arms[k], host = side.querySelector(".body"), head = side.querySelector("h3");
    side.hidden = k === 1 && !shown.pair;
    head.firstChild.textContent = shown.pair ? (k ? "steered" : "plain") : arm?.arm || "as it is";
    head.querySelector("small").textContent = arm ? `prompt ${arm.prompt} · ${arm.given} given, ${Math.max(0, arm.tokens.length - arm.given)} written` : k ? "is written next" : "begins …";
    const tokens = arm?.tokens ?? [];
    while (host.children.length > tokens.length) host.lastChild.remove();
    tokens.forEach((t, i) => {
      let s = host.children[i];
      if (!s) { s = node("span"); s.dataset.i = i; host.append(s); }
      const name = [t[KIND] & 1 ? "special" : t[KIND] & 2 ? "own" : "given", t[TEXT] === "" ? "part" : "", shown.differs !== null && i >= shown.differs ? "apart" : "", i === shown.differs ? "first" : ""].filter(Boolean).join(" ");
      const text = t[KIND] & 1 ? t[TEXT] || "special" : t[TEXT] === "" ? "·" : t[TEXT].replaceAll("\n", "↵\n");
      if (s.textContent !== text) s.textContent = text;
      const v = t[VALUE], share = v === null ? 0 : Math.min(1, Math.abs(v) / shown.scale);
      s.className = name + (v !== null && v < 0 && share >= 0.02 ? " down" : "");
      s.style.setProperty("--a", share < 0.02 ? "0" : (0.06 + 0.56 * share).toFixed(2));
    });
    const grown = !before || (before.arms[k]?.tokens.length ?? 0) < tokens.length;
    if (grown && !host.matches(":hover")) host.scrollTop = host.scrollHeight;
  }

  // In words: where they part, how likely each found what it wrote there, and the measured divergence.
  function verdict() {
    const [a, b] = shown.arms, parts = [];
    if (shown.pair && a && b) {
      const at = shown.differs;
      if (at === null) parts.push(a.closed && b.closed && a.tokens.length === b.tokens.length ? "The same to the last token." : "The same so far.");
      else {
        const one = a.tokens[at], other = b.tokens[at], quote = (t) => (t ? `“${visible(t[TEXT])}” (${nat(t[LOGPROB])})` : "its end");
        parts.push(`The same for ${at - a.given} written tokens, then ${quote(one)} against ${quote(other)}.`);
      }
    }
    if (shown.kl) parts.push(`Effect on the next token: KL ${shown.kl.mean}, mean of ${shown.kl.count} measured.`);
    return parts.join(" ");
  }

  function tip(event, at) {
    if (!event || !at || !shown) { window.idraw.tip(null); return; }
    const k = hosts.indexOf(at.closest(".side")), i = Number(at.dataset.i), t = shown.arms[k]?.tokens[i], other = shown.arms[1 - k]?.tokens[i];
    if (!t) { window.idraw.tip(null); return; }
    const lines = [`“${visible(t[TEXT])}” · token ${i}, ${t[KIND] & 2 ? "written by the model" : "given"}`, `log-probability ${nat(t[LOGPROB])}${shown.pair && other && (shown.differs === null || i < shown.differs) ? `, ${k ? "plain" : "steered"} ${nat(other[LOGPROB])}` : ""}`];
    if (t[KL] !== null) lines.push(`KL of the next token, steered from plain: ${nat(t[KL])}`);
    if (shown.chosen !== null) lines.push(`${called(shown.chosen)} ${label(shown.chosen)}: ${t[VALUE] === null ? "not known" : signed(t[VALUE])}`);
    for (const [feature, value] of t[TOP]) if (feature !== shown.chosen) lines.push(`${called(feature)} ${label(feature)} ${signed(value)}`);
    window.idraw.tip(event, lines);
  }

  function go(side, at) {
    const arm = shown.arms[hosts.indexOf(side)], t = arm?.tokens[Number(at.dataset.i)];
    if (t) window.itime.seek(t[SEQ]);
  }

  return { ready, box, show, open: (name) => send({ op: "pair", to: name }), active: () => shown !== null };
})();
