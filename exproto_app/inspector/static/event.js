// One event of a connection, as a line of the page.

import { $, make } from "./dom.js";
import { clock, count, plain } from "./format.js";

const DUMP = 1024; // bytes that are shown

const SIGNS = { in: "<", frame: ":", out: ">", published: "^", delivered: "v", refused: "!", failed: "!", dropped: "!", gap: "!" };

export function entry(kind, sign, time, ...parts) {
  const element = make("div", "event " + kind);
  const body = make("div");
  body.append(...parts);
  element.append(make("time", "", time), make("span", "sign", sign), body);
  return element;
}

export function line(event) {
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
