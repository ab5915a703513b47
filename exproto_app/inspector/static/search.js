// Searching the traffic.

// Digits of whole bytes are looked for in hex, and any words in the text that bytes are, topics, names, errors.
export function makeMatcher(text) {
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
