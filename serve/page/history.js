// A history being composed: items in the order in which they were taken, to be moved and removed.

import * as api from "./api.js";
import { Combobox } from "./combobox.js";
import { element } from "./element.js";

export class History {
  /** `changed()` is called after every change by the reader; `failed(error)` when the catalog cannot be searched. */
  constructor({ changed, failed }) {
    this.items = [];
    this.changed = changed;
    this.list = element("ol.chips", { "aria-label": "History, oldest first" });
    this.said = element("p.unseen", { role: "status" });
    this.box = new Combobox({
      label: "Add an item of the catalog",
      placeholder: "search titles",
      search: async (text, signal) => (await api.items(text, 12, signal)).map(asOption),
      chosen: (option) => this.#add({ item_id: option.value, title: option.label }),
      failed,
    });
    const hint = element("p.hint", {}, "Oldest first; the last counts most.");
    this.node = element("div", {}, this.box.node, this.list, hint, this.said);
    this.#draw();
  }

  get ids() {
    return this.items.map((item) => item.item_id);
  }

  /** Puts these items in place of the present ones, silently. */
  set(items) {
    this.items = items.map(({ item_id, title }) => ({ item_id: String(item_id), title }));
    this.#draw();
  }

  #add(item) {
    this.items = [...this.items.filter((other) => other.item_id !== item.item_id), item];
    this.#draw(`${item.title} added`);
    this.changed();
  }

  #remove(place) {
    const [gone] = this.items.splice(place, 1);
    this.#draw(`${gone.title} removed`);
    const next = this.list.children[Math.min(place, this.items.length - 1)];
    (next?.querySelector(".remove") ?? this.box.input).focus();
    this.changed();
  }

  #move(place, step) {
    const to = place + step;
    if (to < 0 || to >= this.items.length) return;
    const [item] = this.items.splice(place, 1);
    this.items.splice(to, 0, item);
    this.#draw(`${item.title} is now ${to + 1} of ${this.items.length}`);
    const buttons = this.list.children[to].querySelectorAll(step < 0 ? ".earlier, .later" : ".later, .earlier");
    [...buttons].find((button) => !button.disabled)?.focus();
    this.changed();
  }

  #draw(said = "") {
    this.list.replaceChildren(...this.items.map((item, place) => this.#chip(item, place)));
    this.list.hidden = this.items.length === 0;
    this.said.textContent = said;
  }

  #chip(item, place) {
    const button = (kind, sign, words, act, disabled = false) =>
      element(`button.${kind}`, { type: "button", ariaLabel: `${words}: ${item.title}`, title: words, disabled, onclick: act }, sign);
    const keys = (event) => {
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (event.altKey && step) {
        event.preventDefault();
        this.#move(place, step);
      } else if (event.key === "Delete") this.#remove(place);
    };
    return element(
      "li.chip",
      { onkeydown: keys },
      element("span.title", { title: item.title }, item.title),
      button("earlier", "↑", "Earlier", () => this.#move(place, -1), place === 0),
      button("later", "↓", "Later", () => this.#move(place, 1), place === this.items.length - 1),
      button("remove", "×", "Remove", () => this.#remove(place)),
    );
  }
}

function asOption(item) {
  return { value: String(item.item_id), label: item.title, detail: String(item.item_id) };
}
