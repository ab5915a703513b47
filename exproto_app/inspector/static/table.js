// The table of connections.

import { $, make, put, whenTyped } from "./dom.js";
import { age, count, plain, size } from "./format.js";
import { say } from "./server.js";

const ROWS = 100; // at once

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

const query = { search: "", sort: "since", descending: true, offset: 0, limit: ROWS, ended: false };

let chosen = null; // the id of the connection that is looked at
let looked = () => {};

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

// Ask for the rows from *offset* on.
export function ask(offset = query.offset) {
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
  if (!query.ended) looked(row.dataset.id);
}

// Call *then* with the id of the connection whose row is chosen from now on.
export function whenLooked(then) {
  looked = then;
}

// Mark the row of the connection that is looked at, of none if *id* is null.
export function choose(id) {
  chosen = id;
  for (const row of $("rows").children) row.classList.toggle("chosen", !query.ended && row.dataset.id === id);
}

export function showTable(table) {
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

whenTyped("search", (text) => {
  query.search = text;
  ask(0);
});
$("which").onchange = () => {
  query.ended = $("which").value === "ended";
  query.sort = query.ended ? "last" : "since";
  query.descending = true;
  $("rows").className = $("which").value;
  ask(0);
};
$("newer").onclick = () => ask(query.offset - ROWS);
$("older").onclick = () => ask(query.offset + ROWS);
