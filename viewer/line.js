"use strict";
// The line from the server: what page.js draws comes as one binary message a step; see line.py. A line that ends is a server that is gone.
window.iline = (() => {
  const utf8 = new TextDecoder();
  let socket = null;

  function ready(name) {
    const at = new URL(`line?page=${encodeURIComponent(name)}`, location.origin + location.pathname);
    at.protocol = at.protocol === "https:" ? "wss:" : "ws:";
    socket = new WebSocket(at);
    socket.binaryType = "arraybuffer";
    socket.addEventListener("open", seen);
    socket.addEventListener("message", (e) => take(e.data));
    socket.addEventListener("close", () => { if (socket) window.ilive.lost(); });
    document.addEventListener("visibilitychange", seen);
    window.addEventListener("pagehide", () => { const left = socket; socket = null; left?.close(); });
    window.addEventListener("pageshow", (e) => { if (e.persisted) location.reload(); });   // back, from the browser's memory: its line is closed
  }

  function seen() { if (socket?.readyState === WebSocket.OPEN) socket.send(document.hidden ? "hidden" : "seen"); }

  function take(message) {
    const length = new DataView(message).getUint32(0, true), parts = JSON.parse(utf8.decode(new Uint8Array(message, 4, length))), told = new Map();
    let at = Math.ceil((4 + length) / 8) * 8;
    for (const [name, column, kind, bytes] of parts) {
      const part = new Uint8Array(message, at, bytes);
      if (!told.has(name)) told.set(name, {});
      told.get(name)[column] = [kind === "t" ? utf8.decode(part) : part];
      at += Math.ceil(bytes / 8) * 8;
    }
    for (const [name, data] of told) window.ilive[name]({ data });
  }

  return { ready };
})();
