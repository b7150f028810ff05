// Elements and words.  Whatever the server tells goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with its properties (class, data-…, on… as functions) and children. */
export function make(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same, of SVG. */
export function draw(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set the text of an element where it is another one: nothing that is selected or read aloud is touched in vain. */
export function tell(element, text) {
  const told = String(text);
  if (element.textContent !== told) element.textContent = told;
}

/** Set or remove an attribute where it is another one. */
export function mark(element, name, value) {
  if (value === null || value === undefined) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** A number with three digits that mean something. */
export function few(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 100) return Math.round(value).toLocaleString("en");
  if (size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(size >= 10 ? 3 : 2)));
}

/** Milliseconds, with their unit. */
export function ms(value) {
  if (value === null || value === undefined) return "–";
  return value >= 1000 ? `${few(value / 1000)} s` : `${few(value)} ms`;
}

/** Seconds as a span that people say. */
export function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export function bytes(value) {
  return value >= 1 << 30 ? `${few(value / (1 << 30))} GiB` : `${few(value / (1 << 20))} MiB`;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB");
}
