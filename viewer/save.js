"use strict";
// A panel as PNG, what is in sight as CSV: files that say what they show.
window.isave = (() => {
  const q = (query) => document.querySelector(query);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let cells = null;

  function ready(args) {
    cells = args.cells;
    document.querySelectorAll("[data-save]").forEach((button) => button.addEventListener("click", () => {
      if (button.dataset.save === "png") png(button.dataset.of);
      else if (button.dataset.save === "csv") window.itime.send({ op: "csv" });
      else table();
    }));
  }

  function offer(name, blob) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name.replace(/[^\w.-]+/g, "_");
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  function file(source) {
    const { name, text } = source.data;
    if (name.length) offer(name[0], new Blob([text[0]], { type: "text/csv" }));
  }

  function table() {
    const d = cells.data, quote = (v) => (/[",\n]/.test(v) ? `"${String(v).replaceAll('"', '""')}"` : v);
    const rows = Array.from(d.feature, (_, i) => [d.feature[i], d.metric[i], Number(d.r[i]).toFixed(4), d.interval[i], d.support[i], d.verdict[i]].map(quote).join(","));
    offer(`${q("h1").textContent}-correlations.csv`, new Blob([["feature,metric,r,95 % interval,from,verdict", ...rows].join("\n") + "\n"], { type: "text/csv" }));
  }

  // What canvases show, and the texts that stand beside them as elements.
  function png(what) {
    const host = what === "heatmap" ? q(".plot.heat") : q(`[data-canvas=${what}]`).parentElement;
    const r = window.devicePixelRatio || 1, box = host.getBoundingClientRect(), head = 26;
    const made = document.createElement("canvas");
    made.width = Math.round(box.width * r);
    made.height = Math.round((box.height + head) * r);
    const ctx = made.getContext("2d");
    ctx.scale(r, r);
    ctx.fillStyle = css("--panel");
    ctx.fillRect(0, 0, box.width, box.height + head);
    const canvases = what === "heatmap" ? deep(host) : [...host.querySelectorAll("canvas")];
    for (const canvas of canvases) {
      const at = canvas.getBoundingClientRect();
      if (canvas.width && at.width) ctx.drawImage(canvas, at.left - box.left, at.top - box.top + head, at.width, at.height);
    }
    for (const text of host.querySelectorAll(".rows b, .rows .l, .rows .s, .rows .d, .titles b, .titles .i")) {
      const at = text.getBoundingClientRect(), style = getComputedStyle(text);
      if (!at.width || !text.textContent) continue;
      ctx.save();
      ctx.beginPath();
      ctx.rect(at.left - box.left, at.top - box.top + head - 2, at.width, at.height + 4);
      ctx.clip();
      ctx.fillStyle = style.color;
      ctx.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
      ctx.textBaseline = "middle";
      ctx.fillText(text.textContent, at.left - box.left, at.top - box.top + head + at.height / 2);
      ctx.restore();
    }
    ctx.fillStyle = css("--muted");
    ctx.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    ctx.textBaseline = "middle";
    ctx.fillText([q("h1").textContent, q("[data-text=environment]").textContent, q("[data-text=dictionary]").textContent, q("#when").textContent].filter(Boolean).join(" · "), 6, head / 2);
    made.toBlob((blob) => offer(`${q("h1").textContent}-${what}.png`, blob));
  }

  // Bokeh keeps its canvases in shadow roots.
  function deep(root) {
    const found = [];
    for (const e of root.querySelectorAll("*")) {
      if (e.tagName === "CANVAS") found.push(e);
      if (e.shadowRoot) found.push(...deep(e.shadowRoot));
    }
    return found;
  }

  return { ready, file, png };
})();
