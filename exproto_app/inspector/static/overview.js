// Protocols with their listeners, the hub, and the counters.

import { $, make, put } from "./dom.js";
import { count } from "./format.js";

let before = null; // the state that is shown

// Whether *state* is that of the process that was shown before, where the ids of connections are still the same.
export const isSameProcess = (state) => before === null || before.instance === state.instance;

export function showState(state) {
  put($("hub"), `messages through ${state.hub}${state.ready === false ? ", which isn't reachable" : ""}`);
  $("hub").classList.toggle("error", state.ready === false);
  const cards = $("protocols");
  while (cards.children.length > state.protocols.length) cards.lastChild.remove();
  state.protocols.forEach((protocol, index) => showProtocol(cards.children[index] ?? cards.appendChild(newCard()), protocol));
  if (!$("counters").hidden) showCounters(state);
  before = state;
}

function newCard() {
  const card = make("div", "card");
  card.append(make("b"), make("span", "number"), make("div", "where"), make("div", "framing"));
  return card;
}

function showProtocol(card, protocol) {
  const [name, number, where, framing] = card.children;
  put(name, protocol.name);
  put(number, `${count(protocol.connections)} connected`);
  put(where, protocol.listeners.join("  ") || "no listener");
  put(framing, protocol.framing + (protocol.codec ? `, ${protocol.codec}` : ""));
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

function fold(button, panel, shown) {
  $(button).onclick = () => {
    const hidden = ($(panel).hidden = !$(panel).hidden);
    $(button).setAttribute("aria-expanded", String(!hidden));
    if (!hidden) shown();
  };
}

fold("show-counters", "counters", () => {
  if (before !== null) showCounters(before);
});
fold("show-publish", "publish", () => $("publish-topic").focus());
