"use strict";
// What the scripts of every page make things of. Whatever a run or a model wrote goes in as text, never as markup.
window.imake = {
  // An element; of what it is to hold, null, undefined and "" are left out.
  node(tag, name, ...parts) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...parts.filter((p) => p !== null && p !== undefined && p !== ""));
    return made;
  },
  // A number with so many digits and a proper minus.
  signed: (v, digits = 3) => String(+v.toPrecision(digits)).replace("-", "−"),
  // A token's text on one line.
  visible: (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍"),
};
