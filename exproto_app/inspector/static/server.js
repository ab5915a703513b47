// The gateway: a WebSocket for what the page shows, requests for what is done from it.

import { $, put } from "./dom.js";

let socket = null;
let retry = 0;
let handlers = null; // opened() and take(message)

export async function post(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (response.status === 401) showLogin("");
  if (!response.ok) throw new Error((await response.json()).error);
}

export function say(type, facts) {
  if (socket !== null && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type, ...facts }));
}

// Show the state of the connection to the gateway.
export function showLink(text, kind) {
  $("link").textContent = text;
  $("link").className = "pill " + kind;
}

// Connect, and again whenever the connection is lost; the handlers stay.
export function connect(given = handlers) {
  handlers = given;
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const opened = (socket = new WebSocket(`${scheme}//${location.host}/api/live`));
  let worked = false;
  opened.onopen = () => {
    worked = true;
    retry = 0;
    showLink("live", "live");
    $("main").hidden = $("tools").hidden = false;
    $("login").hidden = true;
    handlers.opened();
    say("visible", { visible: !document.hidden });
  };
  opened.onmessage = (message) => handlers.take(JSON.parse(message.data));
  opened.onclose = async () => {
    if (socket !== opened) return;
    showLink("not connected", "lost");
    if (!worked && (await refused())) return;
    retry = Math.min(retry + 1, 10);
    setTimeout(() => connect(), retry * 1000);
  };
}

// A browser doesn't tell why a WebSocket was refused, so ask again.
async function refused() {
  try {
    const response = await fetch("/api/state");
    if (response.ok) return false;
    const words = (await response.json()).error;
    if (response.status !== 401) showLink(words, "lost");
    else showLogin("");
    return response.status === 401;
  } catch {
    return false;
  }
}

function showLogin(words) {
  $("login").hidden = false;
  $("main").hidden = $("tools").hidden = true;
  showLink("not connected", "lost");
  put($("login-error"), words);
  $("token").focus();
}

// Show the token, then connect.
export async function login(token, given = handlers) {
  handlers = given;
  try {
    const response = await fetch("/api/login", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ token }),
    });
    if (!response.ok) return showLogin((await response.json()).error);
    $("token").value = "";
    connect();
  } catch {
    showLogin("the gateway doesn't answer");
  }
}

$("login").onsubmit = (event) => {
  event.preventDefault();
  login($("token").value);
};

document.onvisibilitychange = () => say("visible", { visible: !document.hidden });
