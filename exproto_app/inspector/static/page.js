// The inspector's page: hands what the gateway says to the part that shows it.

import "./actions.js";
import { $ } from "./dom.js";
import { isSameProcess, showState } from "./overview.js";
import { connect, login, showLink } from "./server.js";
import { ask, showTable, whenLooked } from "./table.js";
import { arrive, begin, isCurrent, isWatching, note, restarted, resume, watch } from "./traffic.js";

let returning = false; // to the connection that was looked at, once it is known that the ids are still the same

function opened() {
  ask();
  returning = isWatching();
}

function take(message) {
  if (!isCurrent(message)) return;
  switch (message.type) {
    case "state": return takeState(message);
    case "table": return showTable(message);
    case "watching": return begin(message);
    case "events": return arrive(message.events);
    case "gone": return note("this connection is gone; what is shown was before");
    case "error": return showLink(message.text, "lost");
  }
}

function takeState(state) {
  if (returning) {
    returning = false;
    if (isSameProcess(state)) resume();
    else restarted();
  }
  showState(state);
}

whenLooked((id) => watch("watch", { id }));
$("next").onclick = () => watch("watch next", {});

ask(0);
const token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token) {
  history.replaceState(null, "", location.pathname); // so that it is in no bookmark
  login(token, { opened, take });
} else {
  connect({ opened, take });
}
