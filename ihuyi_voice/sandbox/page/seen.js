// Which rows are new: those that came since the page was opened and were not looked at
// for ten seconds. The tab's title counts them; a hidden tab asks only for the counts.

import { ask } from "./dom.js";
import { figure, t } from "./texts.js";

const LOOKED_AT_MS = 10_000;
// Not before the stream of a hidden tab has ended: until then the rows come by it.
const ASK_MS = 3500;

export class Seen {
  #mark;
  #fresh = new Set();
  #timers = new Set();
  #base = null; // how many requests there were when the tab was hidden
  #missed = 0; // what came since then
  #asking = 0;

  /** `mark` is called with a row's key and whether it is new. */
  constructor(mark) {
    this.#mark = mark;
    for (const event of ["focus", "blur"]) addEventListener(event, () => this.#look());
    document.addEventListener("visibilitychange", () => this.#look());
    this.#look();
    this.#show();
  }

  has(key) {
    return this.#fresh.has(key);
  }

  /** Rows with these keys came in. */
  add(keys) {
    if (this.#base !== null) this.#base += keys.length;
    for (const key of keys) this.#fresh.add(key);
    if (isLooking()) this.#forgetLater(keys);
    this.#show();
  }

  /** A row was opened. */
  see(key) {
    this.#forget([key]);
  }

  clear() {
    this.#forget([...this.#fresh]);
  }

  #look() {
    clearInterval(this.#asking);
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
    if (isLooking()) this.#forgetLater([...this.#fresh]);
    this.#base = null;
    this.#missed = 0;
    if (document.hidden) this.#asking = setInterval(() => this.#ask(), ASK_MS);
  }

  #forgetLater(keys) {
    if (keys.length === 0) return;
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      this.#forget(keys);
    }, LOOKED_AT_MS);
    this.#timers.add(timer);
  }

  #forget(keys) {
    for (const key of keys) if (this.#fresh.delete(key)) this.#mark(key, false);
    this.#show();
  }

  async #ask() {
    try {
      const now = await ask("GET", "counts");
      if (!document.hidden) return;
      const total = now.taken + now.others_taken;
      this.#base ??= total;
      this.#missed = Math.max(0, total - this.#base);
      this.#show();
    } catch {
      // The sandbox was stopped; the page says so when it is looked at.
    }
  }

  #show() {
    const count = this.#fresh.size + this.#missed;
    document.title = count === 0 ? t("title") : `(${figure(count)}) ${t("title")}`;
  }
}

function isLooking() {
  return !document.hidden && document.hasFocus();
}
