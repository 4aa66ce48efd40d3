"use strict";
// What people say of a feature, on its page: a name of theirs, notes, what it was called before. Written by POST; everything is put in as text.
window.ipeople = (data, kit) => {
  const { node, card, known, two, fe } = kit, writing = data.writing ?? { why: null, author: "", text: 4000 };
  const embed = document.body.dataset.embed !== undefined, can = !writing.why && !embed, KEY = `interlatent-note-${data.dictionary?.hash}-${data.feature}`;
  let naming = false, editing = null, removing = null, wrong = { name: "", note: "" }, busy = false;

  const kept = (storage, key) => { try { return window[storage].getItem(key) ?? ""; } catch { return ""; } };
  const keep = (storage, key, value) => { try { if (value) window[storage].setItem(key, value); else window[storage].removeItem(key); } catch { /* a browser that keeps nothing */ } };
  const author = () => kept("localStorage", "interlatent-author") || writing.author;
  const when = (ns) => new Date(ns / 1e6).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const say = (text) => { document.querySelector("#said").textContent = text; };

  // Ask the server; what it answers is what the page shows. Nothing that was typed is lost where it says no.
  async function write(command, where, done) {
    if (busy) return false;
    busy = true;
    let found;
    try {
      const response = await fetch(fe(data.feature), { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ author: author(), ...command }) });
      found = await response.json();
    } catch { found = { error: "The server of this page does not answer. What you typed stays here: try again." }; }
    busy = false;
    wrong = { name: "", note: "" };
    if (found.error) { wrong[where] = found.error; kit.draw(); return false; }
    Object.assign(data, found);
    say(done);
    return true;
  }

  function button(text, act, kind = "") { const made = node("button", kind, text); made.type = "button"; made.addEventListener("click", act); return made; }
  function form(send, ...parts) { const made = node("form", "", ...parts); made.addEventListener("submit", (e) => { e.preventDefault(); send(); }); return made; }
  function problem(text) { const made = node("p", "wrong", text); made.setAttribute("role", "alert"); return text ? made : null; }

  // The heading: name and label, and how it is changed.
  function heading() {
    const h1 = node("h1", "", node("b", "", data.name), data.label || "unexplained");
    if (!can) return [h1];
    if (!naming) return [h1, button("Rename", () => { naming = true; kit.draw(); const box = document.querySelector(".naming input"); box.focus(); box.select(); }, "small rename"), problem(wrong.name)];
    const input = node("input");
    input.value = data.label ?? "";
    input.maxLength = 80;
    input.setAttribute("aria-label", `Name for ${data.name}, at most six words`);
    input.addEventListener("keydown", (e) => { if (e.key === "Escape") leave(); });
    const leave = () => { naming = false; wrong.name = ""; kit.draw(); document.querySelector(".rename")?.focus(); };
    const send = async () => { if (await write({ do: "name", label: input.value }, "name", `Renamed to ${input.value.trim()}`)) { naming = false; kit.draw(); document.querySelector(".rename")?.focus(); } else again(input.value); };
    const again = (value) => { const box = document.querySelector(".naming input"); if (box) { box.value = value; box.focus(); } };
    const made = form(send, node("b", "", data.name), input, node("button", "", "Save"), button("Cancel", leave, "small"));
    made.className = "naming";
    return [node("h1", "sr", `${data.name} ${data.label || "unexplained"}`), made, problem(wrong.name)];
  }

  // Who named it, what the explainer says, and the ways back.
  function origin() {
    const parts = [];
    if (data.named_by_user) {
      const by = data.names?.[0]?.label ? data.names[0] : null, s = data.score;
      const score = known(s?.balanced_accuracy) ? `, ${two(s.balanced_accuracy)}${known(s.low) ? ` (95 % ${two(s.low)} … ${two(s.high)})` : ""}` : ", unscored";
      parts.push(`named by ${by?.author || "a person"}${by ? `, ${when(by.wall_ns)}` : ""}; `, data.own_label ? `the explainer says “${data.own_label}”${score}` : "no explainer has named it");
    }
    if (can && data.names?.length) {
      const go = (command, done) => async () => { await write(command, "name", done); kit.draw(); };
      parts.push(" ", button("Undo", go({ do: "undo" }, "Undone"), "small"));
      if (data.named_by_user && data.own_label) parts.push(" ", button("Use the explainer’s", go({ do: "name", label: null }, "The explainer’s label counts again"), "small"));
    }
    return parts.length ? node("p", "origin", ...parts) : null;
  }

  function box(value, label, store) {
    const text = node("textarea"), count = node("span", "count"), shown = () => { const n = text.value.length; count.textContent = n > writing.text * 0.8 ? `${n} of ${writing.text}` : ""; };
    text.value = value;
    text.rows = Math.min(8, Math.max(2, value.split("\n").length));
    text.maxLength = writing.text;
    text.setAttribute("aria-label", label);
    text.addEventListener("input", () => { shown(); if (store) keep("sessionStorage", KEY, text.value); });
    text.addEventListener("keydown", (e) => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) { e.preventDefault(); text.form.requestSubmit(); } });
    shown();
    return [text, count];
  }

  function note(n) {
    const head = node("p", "by", node("b", "", n.author || "unsigned"), ` · ${when(n.wall_ns)}${known(n.edited_wall_ns) ? ` · edited ${when(n.edited_wall_ns)}` : ""}`), item = node("li", "", head);
    if (editing === n.id) {
      const [text, count] = box(n.text, "Change the note", false);
      const send = async () => { if (await write({ do: "edit", note: n.id, text: text.value }, "note", "Note changed")) { editing = null; kit.draw(); } else { const host = document.querySelector(".note-list textarea"); if (host) host.value = text.value; } };
      item.append(form(send, text, node("p", "send", count, node("button", "", "Save"), button("Cancel", () => { editing = null; kit.draw(); }, "small"))));
      return item;
    }
    item.append(node("p", "text", n.text));
    if (!can || !n.own) return item;
    if (removing === n.id) head.append(" · Delete it? ", button("Delete", async () => { removing = null; await write({ do: "delete", note: n.id }, "note", "Note deleted"); kit.draw(); }, "small sure"), button("Keep", () => { removing = null; kit.draw(); }, "small"));
    else head.append(" ", button("Edit", () => { editing = n.id; removing = null; kit.draw(); document.querySelector(".note-list textarea").focus(); }, "small"), button("Delete", () => { removing = n.id; kit.draw(); document.querySelector(".note-list .sure").focus(); }, "small"));
    return item;
  }

  function notes() {
    const list = data.notes ?? [], parts = [];
    if (list.length) parts.push(node("ol", "note-list", ...list.map(note)));
    else parts.push(node("p", "", can ? "No note yet. What did you see? When is the label wrong?" : "No note yet."));
    if (can) {
      const [text, count] = box(kept("sessionStorage", KEY), "Write a note", true), by = node("input");
      text.placeholder = "Write a note; everybody who opens this database reads it";
      by.value = author();
      by.maxLength = 60;
      by.placeholder = "your name";
      by.addEventListener("input", () => keep("localStorage", "interlatent-author", by.value.trim()));
      const send = async () => { if (await write({ do: "add", text: text.value }, "note", "Note kept")) { keep("sessionStorage", KEY, ""); kit.draw(); document.querySelector(".writes textarea").focus(); } };
      const made = form(send, text, node("p", "send", node("label", "", "signed ", by), count, node("button", "", "Keep note")));
      made.className = "writes";
      parts.push(problem(wrong.note), made);
    } else if (writing.why && !embed) parts.push(node("p", "why-not", writing.why));
    const before = (data.names ?? []).filter((n, i) => i || !n.label);
    if (before.length) {
      const names = node("details", "", node("summary", "", `Called before (${before.length})`), node("ol", "", ...before.map((n) => node("li", "", n.label ? `“${n.label}”` : "taken back", ` · ${n.author || "a person"}, ${when(n.wall_ns)}`))));
      parts.push(names);
    }
    return card(["Notes ", node("small", "", list.length ? `${list.length}; of this dictionary, in every run of this database` : "of this dictionary, in every run of this database")], "half notes", ...parts);
  }

  return { heading, origin, notes };
};
