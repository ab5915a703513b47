// Elements of the page. What devices sent gets into them as text only, never as HTML.

export const $ = (id) => document.getElementById(id);

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// Set only what differs, so that a selection or a tooltip stays.
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Call *then* with the text of an input, once nobody has typed for a moment.
export function whenTyped(input, then) {
  let waiting = 0;
  $(input).oninput = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => then($(input).value), 150);
  };
}
