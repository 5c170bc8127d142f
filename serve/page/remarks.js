// What an answer says about itself, as notices: degraded, not reranked, cut by a budget, for nobody in particular.

import { ALONE } from "./columns.js";
import { notice } from "./notice.js";
import { sentence } from "./words.js";

/**
 * @param {Object} answer of the service.
 * @param {Object} how
 * @param {boolean} how.reranked
 * @param {Object} how.about the service.
 * @param {string} how.view of the columns.
 * @param {Function} how.always asks for the reranker in any case.
 */
export function remarks(answer, { reranked, about, view, always }) {
  const found = [];
  const { present, helps } = about.reranker;
  if (answer.basis === "recent popular items" && answer.items.length) {
    const nobody = answer.known_user === false ? "Neither log nor events know this user:" : "No history:";
    found.push(notice("info", nobody, "these are the popular items of the last days."));
  }
  if (answer.unknown_items?.length) {
    found.push(notice("warn", "The catalog lacks:", `${answer.unknown_items.join(", ")}; passed over.`));
  }
  if (answer.degraded && reranked) {
    found.push(notice("warn", "Degraded:", sentence(answer.reason)));
  } else if (answer.degraded) {
    found.push(notice("warn", "Degraded: this is retrieval's order.", sentence(answer.reason)));
  } else if (!present) {
    const text = "Train one with python cli.py train-reranker.";
    found.push(notice("info", "This release has no reranker: this is retrieval's order.", text));
  } else if (!reranked && answer.reason) {
    const action = helps ? null : { label: "Show what it would do", act: always };
    found.push(notice("info", "Not reranked: this is retrieval's order.", sentence(answer.reason), action));
  } else if (reranked && !helps) {
    const text =
      view === ALONE
        ? "The right column is the order that it would give by itself."
        : "The answer keeps retrieval's order.";
    found.push(notice("info", "On validation this reranker earned no weight.", text));
  }
  if (answer.left_out) found.push(notice("info", "The budget left something out:", `${answer.left_out}.`));
  return found;
}
