// What the reader must know before she believes the list: faults, degraded answers, a reranker that was not asked.

import { element } from "./element.js";

const SIGNS = { info: "i", warn: "!", error: "×" };

/**
 * @param {"info"|"warn"|"error"} kind
 * @param {string} title one sentence.
 * @param {string} [text] more, such as the service's own words.
 * @param {{label: string, act: Function}} [action] what can be done about it.
 */
export function notice(kind, title, text = "", action = null) {
  return element(
    `div.notice.${kind}`,
    { role: kind === "error" ? "alert" : "note" },
    element("span.sign", { ariaHidden: "true" }, SIGNS[kind]),
    element("p", {}, element("strong", {}, title), text ? ` ${text}` : null),
    action && element("button.small", { type: "button", onclick: action.act }, action.label),
  );
}
