// The inspector's page. What devices sent gets into it as text only, never as HTML.
"use strict";

const ROWS = 100; // of the table at once
const EVENTS = 5000; // kept of a connection
const CHARACTERS = 16e6; // of them; the oldest go first
const SHOWN = 500; // events in the page at once, the newest that match
const DUMP = 1024; // bytes of one event that are shown

const COLUMNS = [
  ["clientid", "Clientid", "name"],
  ["protocol", "Protocol", "extra"],
  ["peer", "Peer", "extra"],
  ["state", "State", ""],
  ["since", "Since", "number extra"],
  ["last", "Last frame", "number"],
  ["rate", "Frames/s", "number"],
  ["bytes", "In / out", "number extra"],
  ["queue", "Queue", "number extra"],
];

const ENDED_TITLES = { last: "Ended", rate: "Frames", state: "Why" };

const $ = (id) => document.getElementById(id);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// Set only what differs, so that a selection or a tooltip stays.
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Control characters, and those that turn the text around, are shown by their number.
function plain(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu, (c) => {
    const code = c.codePointAt(0);
    return code < 256 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u{" + code.toString(16) + "}";
  });
}

const count = (number) => Math.round(number).toLocaleString("en");

function size(bytes) {
  for (const unit of ["B", "kB", "MB"]) {
    if (bytes < 1000) return (bytes < 10 && unit !== "B" ? bytes.toFixed(1) : Math.round(bytes)) + " " + unit;
    bytes /= 1000;
  }
  return bytes.toFixed(1) + " GB";
}

function age(seconds) {
  if (seconds < 1) return "now";
  if (seconds < 60) return Math.floor(seconds) + " s";
  if (seconds < 3600) return Math.floor(seconds / 60) + " min";
  if (seconds < 172800) return Math.floor(seconds / 3600) + " h";
  return Math.floor(seconds / 86400) + " d";
}

const clock = (seconds) => {
  const date = new Date(seconds * 1000);
  const two = (number, digits = 2) => String(number).padStart(digits, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${two(date.getMilliseconds(), 3)}`;
};

// --- the server

let socket = null;
let retry = 0;
let returning = false; // to the connection that was looked at, once it is known that the ids are still the same
const query = { search: "", sort: "since", descending: true, offset: 0, limit: ROWS, ended: false };

async function post(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (response.status === 401) showLogin("");
  if (!response.ok) throw new Error((await response.json()).error);
}

function say(type, facts) {
  if (socket !== null && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type, ...facts }));
}

function tell(text, kind) {
  $("link").textContent = text;
  $("link").className = "pill " + kind;
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const opened = (socket = new WebSocket(`${scheme}//${location.host}/api/live`));
  let worked = false;
  opened.onopen = () => {
    worked = true;
    retry = 0;
    tell("live", "live");
    $("main").hidden = $("tools").hidden = false;
    $("login").hidden = true;
    say("table", query);
    say("visible", { visible: !document.hidden });
    returning = wanted !== null;
  };
  opened.onmessage = (message) => take(JSON.parse(message.data));
  opened.onclose = async () => {
    if (socket !== opened) return;
    tell("not connected", "lost");
    if (!worked && (await refused())) return;
    retry = Math.min(retry + 1, 10);
    setTimeout(connect, retry * 1000);
  };
}

// A browser doesn't tell why a WebSocket was refused, so ask again.
async function refused() {
  try {
    const response = await fetch("/api/state");
    if (response.ok) return false;
    const words = (await response.json()).error;
    if (response.status !== 401) tell(words, "lost");
    else showLogin("");
    return response.status === 401;
  } catch {
    return false;
  }
}

function take(message) {
  if ("number" in message && message.number !== number) return; // of what was looked at before
  switch (message.type) {
    case "state": return showState(message);
    case "table": return showTable(message);
    case "watching": return begin(message);
    case "events": return arrive(message.events);
    case "gone": return note("this connection is gone; what is shown was before");
    case "error": return tell(message.text, "lost");
  }
}

function showLogin(words) {
  $("login").hidden = false;
  $("main").hidden = $("tools").hidden = true;
  tell("not connected", "lost");
  put($("login-error"), words);
  $("token").focus();
}

async function login(token) {
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

// --- protocols and counters

let before = null;

function showState(state) {
  if (returning) {
    returning = false;
    if (before === null || before.instance === state.instance) say(wanted.type, wanted.facts);
    else restarted();
  }
  put($("hub"), `messages through ${state.hub}${state.ready === false ? ", which isn't reachable" : ""}`);
  $("hub").classList.toggle("error", state.ready === false);
  const cards = $("protocols");
  while (cards.children.length > state.protocols.length) cards.lastChild.remove();
  state.protocols.forEach((protocol, index) => {
    let card = cards.children[index];
    if (card === undefined) {
      card = make("div", "card");
      card.append(make("b"), make("span", "number"), make("div", "where"), make("div", "framing"));
      cards.append(card);
    }
    const [name, number, where, framing] = card.children;
    put(name, protocol.name);
    put(number, `${count(protocol.connections)} connected`);
    put(where, protocol.listeners.join("  ") || "no listener");
    put(framing, protocol.framing + (protocol.codec ? `, ${protocol.codec}` : ""));
  });
  if (!$("counters").hidden) showCounters(state);
  before = state;
}

function showCounters(state) {
  const list = $("counter-list");
  const names = Object.keys(state.counters).sort();
  while (list.children.length > names.length) list.lastChild.remove();
  names.forEach((name, index) => {
    let line = list.children[index];
    if (line === undefined) {
      line = make("div");
      line.append(make("dt"), make("dd"));
      list.append(line);
    }
    const value = state.counters[name];
    const more = before === null ? 0 : value - (before.counters[name] ?? 0);
    put(line.children[0], name);
    put(line.children[1], count(value) + (more > 0 ? ` (+${count(more)})` : ""));
  });
}

function fold(button, panel) {
  $(button).onclick = () => {
    const hidden = ($(panel).hidden = !$(panel).hidden);
    $(button).setAttribute("aria-expanded", String(!hidden));
    if (!hidden && panel === "counters" && before !== null) showCounters(before);
    if (!hidden && panel === "publish") $("publish-topic").focus();
  };
}
fold("show-counters", "counters");
fold("show-publish", "publish");

// --- the table

let chosen = null; // the id of the connection that is looked at

for (const [sort, title, className] of COLUMNS) {
  const cell = make("th", className);
  const button = make("button", "", title);
  button.type = "button";
  button.onclick = () => {
    query.descending = query.sort === sort ? !query.descending : !["clientid", "protocol", "peer", "state"].includes(sort);
    query.sort = sort;
    ask(0);
  };
  cell.dataset.sort = sort;
  cell.append(button);
  $("head").append(cell);
}

function ask(offset) {
  query.offset = Math.max(0, offset);
  for (const cell of $("head").children) {
    const name = cell.dataset.sort;
    const title = (query.ended && ENDED_TITLES[name]) || COLUMNS.find(([sort]) => sort === name)[1];
    const arrow = name !== query.sort ? "" : query.descending ? " ↓" : " ↑";
    put(cell.firstChild, title + arrow);
    cell.ariaSort = arrow ? (query.descending ? "descending" : "ascending") : null;
  }
  say("table", query);
}

function newRow() {
  const row = make("tr");
  for (const [, , className] of COLUMNS) row.append(make("td", className));
  row.tabIndex = 0;
  row.onclick = () => look(row);
  row.onkeydown = (event) => {
    if (event.key === "Enter") look(row);
  };
  return row;
}

function look(row) {
  if (!query.ended) watch("watch", { id: row.dataset.id });
}

function showTable(table) {
  const body = $("rows");
  while (body.children.length > table.rows.length) body.lastChild.remove();
  table.rows.forEach((facts, index) => {
    const row = body.children[index] ?? body.appendChild(newRow());
    showRow(row, facts, table.now);
  });
  const ended = query.ended;
  const last = table.offset + table.rows.length;
  const range = table.found ? `${count(table.offset + 1)}–${count(last)} of ${count(table.found)}` : "none";
  const all = ended ? table.ended : table.open;
  put($("found"), range + (table.found === all ? "" : ` found, ${count(all)} in all`));
  $("newer").disabled = table.offset === 0;
  $("older").disabled = last >= table.found;
  $("empty").hidden = table.found > 0;
  if (!table.found) put($("empty"), emptyText(all, ended));
  if (table.offset && !table.rows.length) ask(0);
}

function emptyText(all, ended) {
  if (all) return "No connection has these words.";
  return ended ? "None has ended since the gateway started." : "No device is connected. Watch the next, and see it from its first byte.";
}

function showRow(row, facts, now) {
  row.dataset.id = facts.id;
  row.classList.toggle("chosen", !query.ended && facts.id === chosen);
  const [clientid, protocol, peer, state, since, last, rate, bytes, queue] = row.children;
  put(clientid, facts.clientid === null ? `#${facts.id}` : plain(facts.clientid));
  clientid.classList.toggle("nobody", facts.clientid === null);
  clientid.title = facts.clientid === null ? "not registered" : `${plain(facts.clientid)}${facts.username ? ` as ${plain(facts.username)}` : ""}, connection ${facts.id}`;
  put(protocol, facts.protocol);
  put(peer, facts.peer);
  peer.title = facts.socktype;
  put(state, facts.state + (facts.detail ? `: ${plain(facts.detail)}` : ""));
  state.className = "state-" + facts.state.replace(/\W/g, "-");
  state.title = facts.detail ? state.textContent : "";
  put(since, age(now - facts.since));
  since.title = new Date(facts.since * 1000).toLocaleString();
  const moment = facts.ended ?? facts.last;
  put(last, moment === null ? "never" : age(now - moment));
  last.title = moment === null ? "" : new Date(moment * 1000).toLocaleString();
  const perSecond = facts.frame_rate > 0 && facts.frame_rate < 10 ? facts.frame_rate.toFixed(1) : count(facts.frame_rate);
  put(rate, query.ended ? count(facts.frames) : perSecond);
  rate.title = `${count(facts.frames)} frames in all`;
  put(bytes, query.ended ? `${size(facts.received)} / ${size(facts.sent)}` : `${size(facts.rate_in)} / ${size(facts.rate_out)}`);
  bytes.title = `${count(facts.received)} bytes received, ${count(facts.sent)} sent in all`;
  put(queue, count(facts.queue));
  queue.title = Object.entries(facts.queues).map(([name, number]) => `${count(number)} ${name}`).join(", ");
}

let typing = 0;
$("search").oninput = () => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    query.search = $("search").value;
    ask(0);
  }, 150);
};
$("which").onchange = () => {
  query.ended = $("which").value === "ended";
  query.sort = query.ended ? "last" : "since";
  query.descending = true;
  $("rows").className = $("which").value;
  ask(0);
};
$("newer").onclick = () => ask(query.offset - ROWS);
$("older").onclick = () => ask(query.offset + ROWS);
$("next").onclick = () => watch("watch next", {});

// --- the traffic of one connection

let number = 0; // of what is looked at, for the server to say it back
let wanted = null; // what the server was asked to show
let subject = null; // what it shows: the row, and when it began to
let start = null; // of what is kept: the recording's header, and when that began
let events = [];
let characters = 0;
let forgotten = 0; // the oldest, for want of room
let missed = 0; // those that this page was too slow for
let paused = false;
let unseen = 0; // since the pause
let matcher = null;
let drawn = 0; // of events, how many were looked at
let drawing = false;

function watch(type, facts) {
  wanted = { type, facts: { ...facts, number: ++number } };
  subject = null;
  chosen = facts.id ?? null;
  forget();
  pause(false);
  $("traffic").hidden = false;
  $("send-result").textContent = "";
  put($("who"), type === "watch" ? `#${facts.id}` : "Waiting for the next device…");
  put($("who-more"), "");
  allow(false);
  for (const row of $("rows").children) row.classList.toggle("chosen", row.dataset.id === chosen);
  say(type, wanted.facts);
}

function forget() {
  events = [];
  characters = forgotten = missed = unseen = drawn = 0;
  $("events").replaceChildren();
  showNotes();
}

function allow(open) {
  for (const id of ["close", "send-data"]) $(id).disabled = !open;
  $("send").querySelector("button").disabled = !open;
}

function begin(message) {
  if (subject !== null) note("connected again; what happened meanwhile is missing");
  if (!events.length) start = { header: message.header, started: message.started };
  subject = message;
  chosen = message.row.id;
  wanted = { type: "watch", facts: { id: chosen, number } };
  showWho();
  allow(true);
}

// The ids of connections begin anew, so the one that was looked at is another device's now.
function restarted() {
  wanted = chosen = null;
  allow(false);
  note("the gateway was restarted; what is shown was before");
}

function showWho() {
  const row = subject.row;
  put($("who"), row.clientid === null ? `#${row.id}` : plain(row.clientid));
  put($("who-more"), `${row.protocol} · ${row.socktype} ${row.peer} · connection ${row.id}`);
}

function arrive(list) {
  for (const event of list) {
    event.size = 200 + (event.hex?.length ?? 0) + (event.traceback?.length ?? 0);
    event.began = subject.started;
    events.push(event);
    characters += event.size;
    if (event.protocol !== subject.row.protocol) {
      subject.row.protocol = event.protocol; // the first bytes told it
      showWho();
    }
    if (event.event === "gap") missed += event.count;
    if (event.event === "registered") {
      subject.row.clientid = event.client.clientid;
      showWho();
    }
    if (event.event === "closed") allow(false);
  }
  if (paused) unseen += list.length;
  forgetOldest();
  draw();
}

function forgetOldest() {
  const first = events[0].event === "opened" ? 1 : 0; // what the connection is stays, for the recording
  let end = first;
  while (events.length - (end - first) > EVENTS || (characters > CHARACTERS && end < events.length - 1)) {
    characters -= events[end].size;
    end += 1;
  }
  events.splice(first, end - first);
  forgotten += end - first;
  drawn = Math.max(0, drawn - (end - first));
}

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    showNotes();
    if (paused) return;
    const box = $("events");
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const lines = [];
    for (let index = events.length - 1; index >= drawn && lines.length < SHOWN; index--) {
      if (matches(events[index])) lines.push(line(events[index]));
    }
    drawn = events.length;
    box.append(...lines.reverse());
    while (box.children.length > SHOWN) box.firstChild.remove();
    if (atEnd) box.scrollTop = box.scrollHeight;
    showLatest();
  });
}

function showLatest() {
  const box = $("events");
  $("latest").hidden = paused || box.scrollHeight - box.scrollTop - box.clientHeight < 40;
}

function toLatest() {
  $("events").scrollTop = $("events").scrollHeight;
  showLatest();
}

$("events").onscroll = showLatest;
$("latest").onclick = toLatest;

function redraw() {
  drawn = 0;
  $("events").replaceChildren();
  draw();
}

function showNotes() {
  const notes = [];
  if (paused) notes.push(`paused, ${count(unseen)} more`);
  if (missed) notes.push(`${count(missed)} events left out: the page was too slow`);
  if (forgotten) notes.push(`the oldest ${count(forgotten)} are no longer kept`);
  if (matcher !== null) notes.push(`${count($("events").children.length)} found`);
  put($("notes"), notes.join(" · "));
}

function note(text) {
  $("events").append(entry("gap", "=", "", make("span", "what", text)));
}

// --- one event

const SIGNS = { in: "<", frame: ":", out: ">", published: "^", delivered: "v", refused: "!", failed: "!", dropped: "!", gap: "!" };

function entry(kind, sign, time, ...parts) {
  const element = make("div", "event " + kind);
  const body = make("div");
  body.append(...parts);
  element.append(make("time", "", time), make("span", "sign", sign), body);
  return element;
}

function line(event) {
  return entry(event.event, SIGNS[event.event] ?? "=", clock(event.began + event.at), ...parts(event));
}

const what = (text) => make("span", "what", text);
const bytes = (hex) => `${count(hex.length / 2)} byte${hex.length === 2 ? "" : "s"}`;

function parts(event) {
  switch (event.event) {
    case "in":
    case "out": return [what(bytes(event.hex)), dump(event.hex)];
    case "frame": return frame(event);
    case "published":
    case "delivered": {
      const flags = ` qos ${event.qos}${event.retain ? " retain" : ""}`;
      return [make("span", "what topic", plain(event.topic)), what(flags), ...(event.event === "delivered" ? [handler(event)] : []), payload(event.hex)];
    }
    case "opened": return [what(`${event.resumed ? "resumed" : event.late ? "open already" : "opened"}: ${event.socktype} ${event.peer}${event.client ? ` as ${plain(event.client.clientid)}` : ""}`)];
    case "registered": return [what(`registered ${plain(event.client.clientid)}${event.client.username ? ` (${plain(event.client.username)})` : ""}`)];
    case "subscribed": return [what("subscribing to "), make("span", "what topic", plain(event.topic)), what(` qos ${event.qos}`)];
    case "unsubscribed": return [what("unsubscribing from "), make("span", "what topic", plain(event.topic))];
    case "refused": return [what(`${event.what} ${plain(event.topic)} refused: ${plain(event.text)}`)];
    case "failed": return [what(`${event.where} failed: ${plain(event.text)}`), trace(event.traceback)];
    case "dropped": return [what(`${count(event.count)} ${event.what} dropped`)];
    case "closed": return [what(`closed: ${event.reason}${event.detail ? `, ${plain(event.detail)}` : ""}`)];
    case "gap": return [what(`${count(event.count)} events are left out here: the page was too slow`)];
  }
  return [what(event.event)];
}

const handler = (event) => make("span", "what handler", event.handler === null ? "  taken by nobody" : `  → ${event.handler}`);

const INLINE = 16; // bytes of a frame in its line; most are shown above already, as they came

function frame(event) {
  const head = [what(`frame of ${bytes(event.hex)}`), handler(event)];
  const spaced = (bytes) => event.hex.slice(0, 2 * bytes).replace(/..(?!$)/g, "$& ");
  if (event.hex.length <= 2 * INLINE) return [...head, make("span", "what bytes", spaced(INLINE))];
  const details = make("details");
  const summary = make("summary");
  summary.append(...head, make("span", "what bytes", `${spaced(INLINE / 2)} …`));
  details.append(summary);
  details.ontoggle = () => {
    if (details.open && details.children.length === 1) details.append(dump(event.hex));
  };
  return [details];
}

function trace(text) {
  const details = make("details");
  const lines = text.split("\n").map(plain).join("\n");
  details.append(make("summary", "", "traceback"), make("pre", "", lines));
  return details;
}

function payload(hex) {
  const text = decode(hex);
  return text !== null && text !== "" ? make("pre", "", text) : dump(hex);
}

// The text that the bytes are, null if they are none.
function decode(hex) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(unhex(hex.slice(0, 2 * DUMP)));
    return /[\p{Cc}\p{Cf}]/u.test(text) ? null : text;
  } catch {
    return null;
  }
}

const unhex = (hex) => Uint8Array.from(hex.match(/../g) ?? [], (two) => parseInt(two, 16));

function dump(hex) {
  const width = $("events").clientWidth < 660 ? 8 : 16;
  const lines = [];
  const data = unhex(hex.slice(0, 2 * DUMP));
  for (let start = 0; start < data.length; start += width) {
    const row = [...data.subarray(start, start + width)];
    const pairs = row.map((byte) => byte.toString(16).padStart(2, "0"));
    const left = pairs.slice(0, 8).join(" ");
    const both = width === 16 ? (left + "  " + pairs.slice(8).join(" ")).padEnd(49) : left.padEnd(23);
    const text = row.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${start.toString(16).padStart(4, "0")}  ${both} |${text}|`);
  }
  if (hex.length > 2 * DUMP) lines.push(`… ${count(hex.length / 2 - DUMP)} more`);
  return make("pre", "", lines.join("\n"));
}

// --- searching

function matches(event) {
  return matcher === null || matcher(event);
}

// Digits of whole bytes are looked for in hex, and any words in the text that bytes are, topics, names, errors.
function makeMatcher(text) {
  if (!text.trim()) return null;
  const words = text.toLowerCase();
  const digits = words.replace(/0x|[\s:,]/g, "");
  const hex = /^([0-9a-f]{2})+$/.test(digits) ? digits : null;
  const inHex = [...new TextEncoder().encode(text)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return (event) => {
    if (event.hex !== undefined) {
      for (const needle of hex === null ? [inHex] : [hex, inHex]) {
        for (let at = event.hex.indexOf(needle); at >= 0; at = event.hex.indexOf(needle, at + 1)) {
          if (at % 2 === 0) return true;
        }
      }
      const readable = latin(event.hex).toLowerCase();
      if (readable.includes(words)) return true;
    }
    const facts = [event.event, event.topic, event.handler, event.text, event.where, event.reason, event.detail, event.client?.clientid];
    return facts.some((fact) => typeof fact === "string" && fact.toLowerCase().includes(words));
  };
}

const latin = (hex) => (hex.match(/../g) ?? []).map((two) => String.fromCharCode(parseInt(two, 16))).join("");

$("find").oninput = () => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    matcher = makeMatcher($("find").value);
    redraw();
  }, 150);
};

// --- what is done

function pause(on) {
  paused = on;
  unseen = 0;
  $("pause").setAttribute("aria-pressed", String(on));
  put($("pause"), on ? "Resume" : "Pause");
  if (!on) toLatest();
  draw();
}

$("pause").onclick = () => pause(!paused);
$("clear").onclick = forget;

$("back").onclick = () => {
  wanted = subject = chosen = null;
  number += 1;
  say("unwatch");
  forget();
  $("traffic").hidden = true;
  for (const row of $("rows").children) row.classList.remove("chosen");
};

// What is in the recording's format, and nothing that is ours alone.
function recording() {
  const conn = subject.row.id;
  const lines = [JSON.stringify(start.header)];
  let lost = forgotten;
  for (const { size, began, traceback, ...event } of events) {
    if (event.event === "frame" || (event.event === "opened" && lines.length > 1)) continue;
    const at = Math.round((event.at + began - start.started) * 1e6) / 1e6;
    lines.push(JSON.stringify({ ...event, at, conn }));
    if (lost) lines.push(JSON.stringify({ at, conn, protocol: event.protocol, event: "gap", count: lost }));
    lost = 0;
  }
  return lines.join("\n") + "\n";
}

$("save").onclick = () => {
  if (subject === null || !events.length) return;
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([recording()], { type: "application/jsonl" }));
  const name = (subject.row.clientid ?? `connection-${subject.row.id}`).replace(/[^\w.-]+/g, "_").slice(0, 60);
  link.download = `${name}.jsonl`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};

async function act(output, path, body, done) {
  output.className = "";
  output.textContent = "…";
  try {
    await post(path, body);
    output.textContent = done;
    return true;
  } catch (error) {
    output.className = "error";
    output.textContent = error.message;
    return false;
  }
}

const path = (verb) => `/api/connections/${encodeURIComponent(subject.row.id)}/${verb}`;

$("send").onsubmit = async (event) => {
  event.preventDefault();
  if (subject === null) return;
  const body = { [$("send-kind").value]: $("send-data").value, raw: $("send-raw").checked };
  if (await act($("send-result"), path("send"), body, "")) $("send-data").select();
};

$("close").onclick = () => {
  if (subject !== null) act($("send-result"), path("close"), {}, "");
};

$("publish").onsubmit = (event) => {
  event.preventDefault();
  const body = {
    topic: $("publish-topic").value,
    [$("publish-kind").value]: $("publish-data").value,
    qos: Number($("publish-qos").value),
    retain: $("publish-retain").checked,
  };
  act($("publish-result"), "/api/publish", body, `published at ${clock(Date.now() / 1000)}`);
};

for (const [kind, input] of [["send-kind", "send-data"], ["publish-kind", "publish-data"]]) {
  const hint = () => {
    $(input).title = $(kind).value === "hex" ? "78 78 0d 0a, 0x78, also pasted from xxd" : "\\n \\r \\t \\0 \\x1b and \\\\ as in Python";
  };
  $(kind).onchange = hint;
  hint();
}

document.onvisibilitychange = () => say("visible", { visible: !document.hidden });

// --- the beginning

ask(0);
const token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token) {
  history.replaceState(null, "", location.pathname); // so that it is in no bookmark
  login(token);
} else {
  connect();
}
