// The page: asks the service on every change, shows what came back, and keeps the question in the address.

import * as api from "./api.js";
import { Asker } from "./asker.js";
import { ALONE, columns, FUSED, Orders } from "./columns.js";
import { Cost } from "./cost.js";
import { byId, element } from "./element.js";
import { notice } from "./notice.js";
import { remarks } from "./remarks.js";
import { Settings } from "./settings.js";
import { Tabs } from "./tabs.js";
import { count, sentence, settingWords } from "./words.js";

const WIDE = "(min-width: 60rem)";

class Page {
  constructor(about) {
    this.about = about;
    this.view = null;
    this.running = null;
    this.tried = null;
    this.settings = new Settings({ about, changed: () => this.ask() });
    this.asker = new Asker({ changed: () => this.ask(), failed: (error) => this.fail(error) });
    this.cost = new Cost(about.prices);
    this.tabs = new Tabs(document.querySelector("[role=tablist]"), (name) => this.turnedTo(name));
    this.tab = "recommend";
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask({ jump: !matchMedia(WIDE).matches });
    });
    byId("about").textContent = `${count(about.items, "item")} · ${count(about.users, "user")}`;
    byId("about").title = `release ${about.release}`;
  }

  /** What the address says; else the first user of the log; else a wish. */
  async begin(address, firstUser) {
    this.settings.read(address);
    const named = await this.asker.read(address);
    if (!named && firstUser) this.asker.user.value = firstUser;
    else if (!named) this.asker.kind = "wish";
    if (address.get("tab") === "report") this.tabs.show("report");
    await this.ask();
  }

  /** Sends the question as it stands; an earlier one that is still under way is forgotten. */
  async ask({ jump = false } = {}) {
    this.running?.abort();
    this.#clearFaults();
    this.#remember();
    const who = this.asker.body;
    if (who === null) return this.#wait();
    const running = (this.running = new AbortController());
    const body = { ...who, ...this.settings.body };
    byId("answer").setAttribute("aria-busy", "true");
    try {
      const answer = await api.recommend(body, running.signal);
      if (running !== this.running) return;
      this.last = { answer, body, k: this.settings.k.value, words: this.asker.words };
      this.view = null;
      this.show();
      if (jump) byId("answer").focus();
    } catch (error) {
      if (error.name !== "AbortError") this.fail(error);
    } finally {
      if (running === this.running) byId("answer").removeAttribute("aria-busy");
    }
  }

  /** The last answer. */
  show() {
    const { answer, body, k, words } = this.last;
    const reranked = answer.usage.reranked > 0;
    // Where the fusion gives the reranker no weight, only its own order shows what it would do.
    const view = this.view ?? (reranked && !this.about.reranker.helps ? ALONE : FUSED);
    const turn = (other) => {
      this.view = other;
      this.show();
    };
    const always = () => {
      this.settings.rerank = "always";
      this.ask();
    };
    byId("notices").replaceChildren(...this.#trying(), ...remarks(answer, { reranked, about: this.about, view, always }));
    const title = element("h2", {}, "For ", words);
    if (answer.items.length) {
      byId("answer").replaceChildren(title, columns(answer, { k, view, reranked, turn }));
    } else {
      const hint = body.where ? "No item meets the filter." : "The catalog has nothing left for them.";
      byId("answer").replaceChildren(title, element("p.nothing", {}, element("strong", {}, "Nothing to recommend."), ` ${hint}`));
    }
    this.cost.show(answer, body);
    byId("cost").replaceChildren(this.cost.node);
    const { moved, shownAfter } = new Orders(answer.items, k, view);
    const told = reranked ? `${moved} of them moved by reranking` : "in retrieval's order";
    byId("status").textContent = `${count(shownAfter.length, "recommendation")} for ${words}, ${told}.`;
  }

  /** A fault where it belongs: at the filter, at the user, or above the answer. */
  fail(error) {
    const place = placeOf(error);
    if (place) {
      byId(place).textContent = sentence(error.message);
      if (place === "fault-where") {
        byId("settings").open = true;
        byId("where").setAttribute("aria-invalid", "true");
      }
    }
    const shown = place ? [] : [notice("error", headline(error), sentence(error.message), { label: "Try again", act: () => this.ask() })];
    byId("notices").replaceChildren(...shown);
    byId("status").textContent = place ? "" : error.message;
    for (const id of ["answer", "cost"]) byId(id).classList.add("stale");
    if (!byId("answer").childElementCount) byId("answer").replaceChildren(element("p.nothing", {}, "No answer yet."));
  }

  /** A point of the frontier, tried at once. */
  try(setting) {
    this.settings.take(setting);
    this.tried = setting;
    this.tabs.show("recommend", { focus: true });
    byId("settings").open = true;
    scrollTo({ top: 0 });
    this.ask();
  }

  async turnedTo(name) {
    this.tab = name;
    this.#remember();
    if (name !== "report" || this.report) return;
    const { Report } = await import("./report.js");
    this.report = new Report(byId("view-report"), (setting) => this.try(setting));
    await this.report.load();
  }

  #trying() {
    const tried = this.tried;
    this.tried = null;
    if (!tried) return [];
    const text = "Depth is set; model, precision and share of users are the service's own, whatever the point had.";
    return [notice("info", `From the frontier: ${settingWords(tried)}.`, text)];
  }

  #wait() {
    byId("notices").replaceChildren();
    byId("cost").replaceChildren();
    byId("answer").replaceChildren(element("p.nothing", {}, this.asker.wanted));
    byId("answer").removeAttribute("aria-busy");
    byId("status").textContent = "";
  }

  #clearFaults() {
    for (const id of ["fault-who", "fault-where"]) byId(id).textContent = "";
    byId("where").removeAttribute("aria-invalid");
    for (const id of ["answer", "cost"]) byId(id).classList.remove("stale");
  }

  #remember() {
    const address = new URLSearchParams();
    if (this.tab === "report") address.set("tab", "report");
    this.asker.write(address);
    this.settings.write(address);
    history.replaceState(null, "", `#${address}`);
  }
}

/** The id of the line below the field that is at fault; null where it is none of the two. */
function placeOf(error) {
  if (error.status === 404) return "fault-who";
  const fields = [error.message, ...error.faults].map((fault) => fault.split(/[^a-z_]/)[0]);
  if (error.code === "filter" || fields.includes("where")) return "fault-where";
  return fields.some((field) => ["user_id", "history", "query"].includes(field)) ? "fault-who" : null;
}

function headline(error) {
  if (error.status === 429) return "The service is busy.";
  if (error.status === 503) return "The service cannot answer now.";
  return error.status >= 500 || error.status === 0 ? "Something went wrong." : "The service refused this.";
}

/** Asks for an API key in a dialog; null where the reader closes it. */
function askForKey(reason) {
  const dialog = byId("key");
  byId("key-reason").textContent = reason;
  byId("key-value").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((answer) => {
    const done = () => answer(dialog.returnValue === "use" ? byId("key-value").value.trim() || null : null);
    dialog.addEventListener("close", done, { once: true });
  });
}

async function start() {
  api.onKeyWanted(askForKey);
  byId("settings").open = matchMedia(WIDE).matches;
  try {
    const address = new URLSearchParams(location.hash.slice(1));
    const somebody = ["user", "history", "wish"].some((name) => address.has(name));
    const [about, users] = await Promise.all([api.about(), somebody ? [] : api.users("", 1)]);
    await new Page(about).begin(address, users[0]);
  } catch (error) {
    byId("notices").replaceChildren(notice("error", headline(error), sentence(error.message), { label: "Try again", act: () => location.reload() }));
    if (!(error instanceof api.ApiError)) throw error;
  }
  document.documentElement.dataset.ready = "true";
  // For bench/page.py: at the second frame, the first has been painted.
  requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("ready")));
}

start();
