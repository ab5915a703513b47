// Numbers, times and text, as a person reads them.

// Control characters, and those that turn the text around, are shown by their number.
export function plain(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu, (c) => {
    const code = c.codePointAt(0);
    return code < 256 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u{" + code.toString(16) + "}";
  });
}

export const count = (number) => Math.round(number).toLocaleString("en");

export function size(bytes) {
  for (const unit of ["B", "kB", "MB"]) {
    if (bytes < 1000) return (bytes < 10 && unit !== "B" ? bytes.toFixed(1) : Math.round(bytes)) + " " + unit;
    bytes /= 1000;
  }
  return bytes.toFixed(1) + " GB";
}

export function age(seconds) {
  if (seconds < 1) return "now";
  if (seconds < 60) return Math.floor(seconds) + " s";
  if (seconds < 3600) return Math.floor(seconds / 60) + " min";
  if (seconds < 172800) return Math.floor(seconds / 3600) + " h";
  return Math.floor(seconds / 86400) + " d";
}

export const clock = (seconds) => {
  const date = new Date(seconds * 1000);
  const two = (number, digits = 2) => String(number).padStart(digits, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${two(date.getMilliseconds(), 3)}`;
};
