"use strict";
// The offer to learn a dictionary: the command, a button that copies it, one that starts it, and how far a run is.
window.ilearn = (() => {
  const q = (name) => document.querySelector(`.offer ${name}`);
  let shown = "";

  function show(offer) {
    const key = JSON.stringify(offer);
    if (key === shown) return;
    shown = key;
    const box = document.querySelector(".offer");
    box.hidden = !offer;
    if (!offer) return;
    q(".what").textContent = offer.text;
    q("code").textContent = offer.command;
    q(".how").hidden = !offer.command;
    q(".go").hidden = !offer.start;
    if (!offer.start) q(".go").disabled = false;
    q(".failed").textContent = offer.failed;
    q(".failed").hidden = !offer.failed;
    const bar = q("progress");
    bar.hidden = offer.share === null;
    if (offer.share !== null) bar.value = offer.share;
    q(".far").textContent = offer.progress;
    window.idraw.fit?.();
  }

  function ready() {
    q(".copy").addEventListener("click", (e) => {
      const button = e.currentTarget, said = (text) => { button.textContent = text; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
      navigator.clipboard.writeText(q("code").textContent).then(() => said("Copied"), () => {
        const range = document.createRange();
        range.selectNodeContents(q("code"));
        window.getSelection().removeAllRanges();
        window.getSelection().addRange(range);
        said("Press Ctrl+C");
      });
    });
    q(".go").addEventListener("click", (e) => {
      e.currentTarget.disabled = true;
      window.itime.send({ op: "learn" });
    });
  }

  return { ready, show };
})();
