// What is done from the page: send, disconnect, publish.

import { $ } from "./dom.js";
import { clock } from "./format.js";
import { post } from "./server.js";
import { subject } from "./traffic.js";

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
