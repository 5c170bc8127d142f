// A text field with suggestions: the ARIA combobox with a listbox, for a mouse, a finger and a keyboard alike.

import { element } from "./element.js";

const WAIT_MS = 120;
let made = 0;

/** Suggestions come from `search(text, signal)` as `[{value, label, detail}]`; `chosen(option)` gets the choice. */
export class Combobox {
  /**
   * @param {Object} how
   * @param {string} how.label
   * @param {string} how.placeholder
   * @param {Function} how.search
   * @param {Function} how.chosen
   * @param {Function} [how.failed] gets the error of a search.
   * @param {boolean} [how.keeps] whether the field shows the choice afterwards, or is emptied for the next.
   */
  constructor({ label, placeholder, search, chosen, failed = () => {}, keeps = false }) {
    Object.assign(this, { search, chosen, failed, keeps, options: [], active: -1, timer: 0, running: null });
    const id = `combobox-${++made}`;
    this.list = element("ul.options", { id: `${id}-list`, role: "listbox", "aria-label": label, hidden: true });
    this.none = element("p.options.none", { hidden: true }, "Nothing is called so.");
    this.said = element("p.unseen", { role: "status" });
    this.input = element("input", {
      id,
      type: "text",
      role: "combobox",
      placeholder,
      maxLength: 200,
      autocomplete: "off",
      spellcheck: false,
      "aria-expanded": "false",
      "aria-autocomplete": "list",
      "aria-controls": this.list.id,
      oninput: () => this.#soon(),
      onfocus: () => this.keeps && this.input.select(),
      onclick: () => this.list.hidden && this.#soon(0),
      onblur: () => this.close(),
      onkeydown: (event) => this.#key(event),
    });
    const caption = element("label.field", { htmlFor: id }, label);
    this.node = element("div.combobox", {}, caption, this.input, this.list, this.none, this.said);
  }

  set value(text) {
    this.input.value = text;
  }

  get value() {
    return this.input.value.trim();
  }

  close() {
    clearTimeout(this.timer);
    this.running?.abort();
    this.none.hidden = true;
    this.list.hidden = true;
    this.active = -1;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  #soon(wait = WAIT_MS) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#look(), wait);
  }

  async #look() {
    this.running?.abort();
    const running = (this.running = new AbortController());
    try {
      const found = await this.search(this.value, running.signal);
      if (running === this.running && document.activeElement === this.input) this.#show(found);
    } catch (error) {
      if (error.name !== "AbortError") this.failed(error);
    }
  }

  #show(found) {
    this.options = found;
    this.active = -1;
    this.input.removeAttribute("aria-activedescendant");
    this.list.replaceChildren(...found.map((option, place) => this.#row(option, place)));
    this.list.hidden = found.length === 0;
    this.none.hidden = found.length > 0 || this.value === "";
    this.input.setAttribute("aria-expanded", String(found.length > 0));
    this.said.textContent = found.length ? `${found.length} suggestions` : "no suggestions";
  }

  #row(option, place) {
    // The field keeps the focus: a press on the list must not blur it before the click arrives.
    return element(
      "li",
      {
        id: `${this.list.id}-${place}`,
        role: "option",
        "aria-selected": "false",
        onmousedown: (event) => event.preventDefault(),
        onclick: () => this.#take(place),
      },
      element("span", {}, option.label),
      option.detail ? element("span.muted", {}, option.detail) : null,
    );
  }

  #take(place) {
    const option = this.options[place];
    this.input.value = this.keeps ? option.label : "";
    this.close();
    this.chosen(option);
  }

  #key(event) {
    const last = this.options.length - 1;
    if (event.key === "Escape" && !this.list.hidden) {
      event.preventDefault();
      this.close();
    } else if (event.key === "Enter" && !this.list.hidden && this.active >= 0) {
      event.preventDefault();
      this.#take(this.active);
    } else if (event.key === "Enter" && !this.keeps) {
      event.preventDefault(); // the first suggestion is meant, or nothing
      if (!this.list.hidden) this.#take(0);
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (this.list.hidden) return this.#soon(0);
      const step = event.key === "ArrowDown" ? 1 : -1;
      this.#mark(this.active < 0 && step < 0 ? last : (this.active + step + last + 1) % (last + 1));
    }
  }

  #mark(place) {
    this.list.children[this.active]?.setAttribute("aria-selected", "false");
    const row = this.list.children[place];
    row.setAttribute("aria-selected", "true");
    row.scrollIntoView({ block: "nearest" });
    this.input.setAttribute("aria-activedescendant", row.id);
    this.active = place;
  }
}
