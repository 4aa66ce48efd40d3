"use strict";
// A language model's feature in its text: windows of tokens shaded from 0 to 10, and the tokens that it is active at.
window.icontexts = (data, kit) => {
  const { visible } = window.imake;
  const { node, card, table, known, link, short, whole, percent } = kit, LEVELS = 10;

  // As on the page: blue above 0, orange and dotted below; what the model wrote is underlined, special tokens stand in a box.
  function token([, text, kind, value, level], i, at) {
    const s = node("span", kind & 1 ? "special" : kind & 2 ? "own" : "given");
    if (kind & 1) s.textContent = text || "special";
    else if (text === "") { s.textContent = "·"; s.classList.add("part"); }
    else s.textContent = text.replaceAll("\n", "↵\n");
    if (level) s.style.setProperty("--a", (0.06 + 0.056 * level).toFixed(2));
    if (known(value) && value < 0) s.classList.add("down");
    if (i === at) s.classList.add("at");
    s.title = kind & 1 ? "special token: left out of features" : known(value) ? `“${visible(text)}”: ${short(value)}, ${level} of ${LEVELS}` : `“${visible(text)}”: not known`;
    return s;
  }

  function windows() {
    const name = ["Strongest windows ", node("small", "", `one a text where there are enough; shading from 0 to 10, 10 is ${short(data.text.scale)}, its maximum; click one to go there`)];
    if (!data.windows.length) return card("Strongest windows", "wide", node("p", "", "No window is kept yet: they come with events that have ended."));
    return card(name, "wide", node("ol", "contexts", ...data.windows.map((w) => {
      const go = link(`/?${new URLSearchParams({ boot: w.boot, at: w.seq, ...(w.env ? { env: w.env } : {}), source: `${data.dictionary.point}|${data.dictionary.hash}`, shade: data.feature })}`, "");
      go.append(node("b", "", short(w.value)), known(w.prompt) ? ` prompt ${w.prompt} · token ${w.position}` : ` frame ${w.seq}`);
      go.title = "Show this moment, shaded by this feature";
      const tags = Object.entries(w.labels).map(([k, v]) => node("span", "tag", `${k} ${v}`)), head = node("p", "head-line", go, ...tags);
      const text = w.tokens.length ? node("p", "written", w.more_before ? "… " : "", ...w.tokens.map((t, i) => token(t, i, w.at))) : node("p", "", "The tokens of this moment are no longer kept.");
      return node("li", "", head, text);
    })));
  }

  function tokens() {
    const t = data.text, name = ["Tokens that it is active at ", node("small", "", "newest tokens, without the spaces around them")];
    if (!t.tokens) return card(name, "half", node("p", "", "The newest tokens are of another dictionary, so none are counted."));
    if (!t.active) return card(name, "half", node("p", "", `Active at none of the newest ${whole(t.tokens)} tokens.`));
    const most = t.top[0]?.count ?? 1, rows = t.top.map((r) => {
      const fill = node("i"), bar = node("span", "bar1", fill);
      fill.style.width = `${100 * r.count / most}%`;
      return node("tr", "", node("td", "mono", visible(r.token)), node("td", "n", bar, node("span", "num", whole(r.count))), node("td", "n", `${percent(r.of ? r.count / r.of : null)} of ${whole(r.of)}`), node("td", "n", short(r.mean)));
    });
    const rest = `Active at ${percent(t.active / t.tokens)} of ${whole(t.tokens)} tokens (${whole(t.active)}), in ${whole(t.texts_active)} of ${whole(t.texts)} texts; ${whole(t.distinct)} different tokens${t.spaces ? `, ${whole(t.spaces)} of spaces alone` : ""}. Special tokens are left out.`;
    return card(name, "half tall", node("p", "", rest), table([["token", ""], ["active", "n"], ["of those read", "n"], ["mean", "n"]], rows));
  }

  return { windows, tokens };
};
