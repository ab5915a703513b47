// The traffic of one connection.

import { $, make, put, whenTyped } from "./dom.js";
import { entry, line } from "./event.js";
import { count, plain } from "./format.js";
import { log } from "./log.js";
import { makeMatcher } from "./search.js";
import { say } from "./server.js";
import { choose } from "./table.js";

const SHOWN = 500; // events in the page at once, the newest that match

let number = 0; // of what is looked at, for the server to say it back
let wanted = null; // what the server was asked to show
export let subject = null; // what it shows: the row, and when it began to
let paused = false;
let unseen = 0; // since the pause
let matcher = null;
let drawn = 0; // of events, how many were looked at
let drawing = false;

// Whether *message* is of what is looked at now, not of what was before.
export const isCurrent = (message) => !("number" in message) || message.number === number;

// Whether something is looked at.
export const isWatching = () => wanted !== null;

export function watch(type, facts) {
  wanted = { type, facts: { ...facts, number: ++number } };
  subject = null;
  clear();
  pause(false);
  $("traffic").hidden = false;
  $("send-result").textContent = "";
  put($("who"), type === "watch" ? `#${facts.id}` : "Waiting for the next device…");
  put($("who-more"), "");
  allow(false);
  choose(facts.id ?? null);
  say(type, wanted.facts);
}

// Ask again for what was looked at when the connection to the gateway was lost.
export function resume() {
  if (wanted !== null) say(wanted.type, wanted.facts);
}

// The ids of connections begin anew, so the one that was looked at is another device's now.
export function restarted() {
  wanted = null;
  choose(null);
  allow(false);
  note("the gateway was restarted; what is shown was before");
}

export function begin(message) {
  if (subject !== null) note("connected again; what happened meanwhile is missing");
  log.begin(message.header, message.started);
  subject = message;
  const id = message.row.id;
  wanted = { type: "watch", facts: { id, number } };
  choose(id);
  showWho();
  allow(true);
}

export function arrive(list) {
  for (const event of list) {
    event.began = subject.started;
    log.add(event);
    if (event.protocol !== subject.row.protocol) {
      subject.row.protocol = event.protocol; // the first bytes told it
      showWho();
    }
    if (event.event === "registered") {
      subject.row.clientid = event.client.clientid;
      showWho();
    }
    if (event.event === "closed") allow(false);
  }
  if (paused) unseen += list.length;
  drawn = Math.max(0, drawn - log.forgetOldest());
  draw();
}

export function note(text) {
  $("events").append(entry("gap", "=", "", make("span", "what", text)));
}

function clear() {
  log.clear();
  unseen = drawn = 0;
  $("events").replaceChildren();
  showNotes();
}

function allow(open) {
  for (const id of ["close", "send-data"]) $(id).disabled = !open;
  $("send").querySelector("button").disabled = !open;
}

function showWho() {
  const row = subject.row;
  put($("who"), row.clientid === null ? `#${row.id}` : plain(row.clientid));
  put($("who-more"), `${row.protocol} · ${row.socktype} ${row.peer} · connection ${row.id}`);
}

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    showNotes();
    if (paused) return;
    const box = $("events");
    const atEnd = isAtEnd(box);
    const lines = [];
    const events = log.events;
    for (let index = events.length - 1; index >= drawn && lines.length < SHOWN; index--) {
      if (matcher === null || matcher(events[index])) lines.push(line(events[index]));
    }
    drawn = events.length;
    box.append(...lines.reverse());
    while (box.children.length > SHOWN) box.firstChild.remove();
    if (atEnd) box.scrollTop = box.scrollHeight;
    showLatest();
  });
}

const isAtEnd = (box) => box.scrollHeight - box.scrollTop - box.clientHeight < 40;

function showLatest() {
  $("latest").hidden = paused || isAtEnd($("events"));
}

function toLatest() {
  $("events").scrollTop = $("events").scrollHeight;
  showLatest();
}

function showNotes() {
  const notes = [];
  if (paused) notes.push(`paused, ${count(unseen)} more`);
  if (log.missed) notes.push(`${count(log.missed)} events left out: the page was too slow`);
  if (log.forgotten) notes.push(`the oldest ${count(log.forgotten)} are no longer kept`);
  if (matcher !== null) notes.push(`${count($("events").children.length)} found`);
  put($("notes"), notes.join(" · "));
}

function pause(on) {
  paused = on;
  unseen = 0;
  $("pause").setAttribute("aria-pressed", String(on));
  put($("pause"), on ? "Resume" : "Pause");
  if (!on) toLatest();
  draw();
}

$("events").onscroll = showLatest;
$("latest").onclick = toLatest;
$("pause").onclick = () => pause(!paused);
$("clear").onclick = clear;

whenTyped("find", (text) => {
  matcher = makeMatcher(text);
  drawn = 0;
  $("events").replaceChildren();
  draw();
});

$("back").onclick = () => {
  wanted = subject = null;
  number += 1;
  say("unwatch");
  clear();
  $("traffic").hidden = true;
  choose(null);
};

$("save").onclick = () => {
  if (subject === null || !log.events.length) return;
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([log.recording(subject.row.id)], { type: "application/jsonl" }));
  const name = (subject.row.clientid ?? `connection-${subject.row.id}`).replace(/[^\w.-]+/g, "_").slice(0, 60);
  link.download = `${name}.jsonl`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};
