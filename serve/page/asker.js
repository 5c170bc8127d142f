// For whom: a user of the log, a history composed here, or a wish in words.

import * as api from "./api.js";
import { Combobox } from "./combobox.js";
import { byId } from "./element.js";
import { History } from "./history.js";
import { count } from "./words.js";

const KINDS = ["user", "history", "wish"];

export class Asker {
  /** `changed()` is called when somebody else is meant; `failed(error)` when suggestions cannot be had. */
  constructor({ changed, failed }) {
    this.changed = changed;
    this.user = new Combobox({
      label: "User id",
      placeholder: "begin to type an id",
      keeps: true,
      search: async (text, signal) => (await api.users(text, 12, signal)).map((id) => ({ value: id, label: id })),
      chosen: changed,
      failed,
    });
    this.user.input.addEventListener("change", () => this.kind === "user" && changed());
    this.history = new History({ changed, failed });
    this.wish = byId("wish");
    this.wish.addEventListener("change", changed);
    byId("who-user").append(this.user.node);
    byId("who-history").append(this.history.node);
    this.radios = [...document.querySelectorAll("[name=who]")];
    for (const radio of this.radios) radio.addEventListener("change", () => this.#show(true));
    this.#show(false);
  }

  get kind() {
    return this.radios.find((radio) => radio.checked).value;
  }

  set kind(kind) {
    for (const radio of this.radios) radio.checked = radio.value === kind;
    this.#show(false);
  }

  /** Part of a request, or null where nobody is named yet. */
  get body() {
    if (this.kind === "user") return this.user.value ? { user_id: this.user.value } : null;
    if (this.kind === "history") return this.history.ids.length ? { history: this.history.ids } : null;
    return this.wish.value.trim() ? { query: this.wish.value.trim() } : null;
  }

  /** For a heading: `user 42`. */
  get words() {
    if (this.kind === "user") return `user ${this.user.value}`;
    if (this.kind === "history") return `a history of ${count(this.history.items.length, "item")}`;
    return `“${this.wish.value.trim()}”`;
  }

  /** What is missing where `body` is null. */
  get wanted() {
    return {
      user: "Name a user, or compose a history.",
      history: "Add the items that somebody has taken, and see what follows.",
      wish: "Say in a few words what is wanted.",
    }[this.kind];
  }

  /** Into the address of the page. */
  write(address) {
    const body = this.body ?? {};
    if (body.user_id) address.set("user", body.user_id);
    if (body.history) address.set("history", JSON.stringify(body.history));
    if (body.query) address.set("wish", body.query);
  }

  /** Out of the address of the page; whether it named anybody. */
  async read(address) {
    if (address.get("user")) {
      this.kind = "user";
      this.user.value = address.get("user");
    } else if (address.get("history")) {
      this.kind = "history";
      this.history.set(await titled(idsIn(address.get("history"))));
    } else if (address.get("wish")) {
      this.kind = "wish";
      this.wish.value = address.get("wish");
    }
    return this.body !== null;
  }

  #show(byHand) {
    for (const kind of KINDS) byId(`who-${kind}`).hidden = kind !== this.kind;
    if (byHand) this.changed();
  }
}

function idsIn(text) {
  try {
    const found = JSON.parse(text);
    return Array.isArray(found) ? found.map(String) : [];
  } catch {
    return []; // an address that somebody has shortened
  }
}

/** Ids with their titles; an id that the catalog does not find stands for itself. */
function titled(ids) {
  return Promise.all(
    ids.map(async (id) => {
      const found = await api.items(id, 50).catch(() => []);
      return found.find((item) => String(item.item_id) === id) ?? { item_id: id, title: id };
    }),
  );
}
