// Elements without markup: whatever comes from a catalog becomes a text node, never HTML.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element.
 * @param {string} name tag, with classes after dots: "p.muted".
 * @param {Object} [options] `on…` functions become listeners, properties that the element has are set, the rest
 *   are attributes; null and undefined are left out.
 * @param {...(Node|string|number|null)} children texts and elements; null is left out.
 */
export function element(name, options = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(options)) set(made, key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined).map(asNode));
  return made;
}

/** An SVG element; every option is an attribute or a listener. */
export function svg(name, options = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(options)) {
    if (value === null || value === undefined) continue;
    if (typeof value === "function") made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined).map(asNode));
  return made;
}

/** A text that is read aloud and not shown. */
export function unseen(text) {
  return element("span.unseen", {}, text);
}

export function byId(id) {
  return document.getElementById(id);
}

function set(made, key, value) {
  if (value === null || value === undefined) return;
  if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
  else if (key === "data") Object.assign(made.dataset, value);
  else if (key in made && (made[key] === null || typeof made[key] !== "object")) made[key] = value;
  else made.setAttribute(key, value);
}

function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}
