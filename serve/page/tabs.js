// Tabs as the ARIA practices have them: one stop for the Tab key, arrows in between.

import { byId } from "./element.js";

/** Wires a tablist; `shown(name)` is called with the tab's name (`tab-NAME`) when its panel appears. */
export class Tabs {
  constructor(list, shown) {
    this.tabs = [...list.querySelectorAll("[role=tab]")];
    this.shown = shown;
    for (const tab of this.tabs) tab.addEventListener("click", () => this.show(nameOf(tab)));
    list.addEventListener("keydown", (event) => this.#move(event));
  }

  show(name, { focus = false } = {}) {
    for (const tab of this.tabs) {
      const chosen = nameOf(tab) === name;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = !chosen;
      if (chosen && focus) tab.focus();
    }
    this.shown(name);
  }

  #move(event) {
    const at = this.tabs.indexOf(document.activeElement);
    const last = this.tabs.length - 1;
    const to = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    this.show(nameOf(this.tabs[to]), { focus: true });
  }
}

function nameOf(tab) {
  return tab.id.replace("tab-", "");
}
