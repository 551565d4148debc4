// The list of attempts: it holds all that are kept and shows the newest that match.

import { $, count, disable } from "./dom.js";
import { row, showReceipt } from "./row.js";

const STEP = 100;

export class List {
  #open;
  #attempts = []; // oldest first
  #receipts = new Map(); // by the attempt's number
  #rows = new Map(); // by the attempt's number, of those that are shown
  #keep = Infinity;
  #needle = "";
  #limit = STEP;
  #pausedAt = null; // the newest number when it was paused
  #drawing = 0;

  /** `open` is called with the number of the attempt whose details are asked for. */
  constructor(open) {
    this.#open = open;
    $("more").addEventListener("click", () => {
      const before = this.#rows.size;
      this.#limit += STEP;
      this.#draw();
      // The focus moves to the first row that was added, not to the top of the page.
      if ($("more").hidden) $("attempts").children[before]?.querySelector(".open").focus();
    });
    $("search").addEventListener("input", () => {
      this.#needle = plain($("search").value);
      this.#limit = STEP;
      this.draw();
    });
    $("pause").addEventListener("click", () => this.#pause());
  }

  get size() {
    return this.#attempts.length;
  }

  /**
   * Take an event in. `restarted`: the list shows another history now, and
   * nothing of it is new. `added`: the attempts that are new.
   */
  receive({ snapshot, settings, attempts = [], receipts = [] }) {
    this.#keep = settings?.keep ?? this.#keep;
    const newest = this.#attempts.at(-1);
    // A snapshot after a lost connection holds the newest attempt of the list; one of another history does not.
    const isKnown = attempts.some((one) => one.number === newest?.number && one.time === newest.time);
    const restarted = Boolean(snapshot) && !isKnown;
    if (restarted) this.#forget();
    const last = this.#attempts.at(-1)?.number ?? 0;
    const added = attempts.filter((one) => one.number > last);
    for (const attempt of added) this.#attempts.push({ ...attempt, plain: plain(attempt.mobile) });
    // In steps, so that a list at its full length is not copied for each event.
    if (this.#attempts.length > this.#keep * 1.1) this.#trim();
    for (const receipt of receipts) {
      this.#receipts.set(receipt.number, receipt);
      const shown = this.#rows.get(receipt.number);
      if (shown) showReceipt(shown, receipt);
    }
    this.draw();
    return { restarted, added: restarted ? [] : added };
  }

  /** Draw before the next repaint: once, for all events until then. */
  draw() {
    this.#drawing ||= requestAnimationFrame(() => this.#draw());
  }

  #forget() {
    this.#attempts = [];
    this.#receipts.clear();
    // Another gateway counts from 1 too: rows with the same number are other calls.
    this.#rows.clear();
    $("attempts").replaceChildren();
    if (this.#pausedAt !== null) this.#pausedAt = 0;
  }

  #trim() {
    this.#attempts = this.#attempts.slice(-this.#keep);
    const oldest = this.#attempts[0].number;
    for (const number of this.#receipts.keys()) if (number < oldest) this.#receipts.delete(number);
  }

  #pause() {
    this.#pausedAt = this.#pausedAt === null ? (this.#attempts.at(-1)?.number ?? 0) : null;
    // Its name shows the state: aria-pressed would be read as "Resume, pressed".
    $("pause").classList.toggle("on", this.#pausedAt !== null);
    this.#draw();
  }

  #draw() {
    cancelAnimationFrame(this.#drawing);
    this.#drawing = 0;
    const { shown, matching, kept, waiting } = this.#matches();
    this.#place(shown);
    const isEmpty = kept === 0 && waiting === 0;
    $("attempts").hidden = shown.length === 0;
    $("more").hidden = matching <= shown.length;
    $("empty").hidden = !isEmpty;
    // Paused before the first call, there is nothing to search.
    const isHeldBack = kept === 0 && waiting > 0;
    const held = `${count(waiting, "call waits", "calls wait")} until you resume.`;
    $("paused").hidden = !isHeldBack;
    $("paused-text").textContent = held;
    $("no-match").hidden = kept === 0 || matching > 0;
    $("no-match-text").textContent =
      `Searched ${count(kept, "call")}, the refused ones too.${waiting > 0 ? ` ${held}` : ""}`;
    $("count").textContent = counted(shown.length, matching, kept);
    disable($("clear"), isEmpty, $("attempts-title"));
    $("pause").textContent = this.#pausedAt === null ? "Pause" : `Resume · ${waiting.toLocaleString("en")} new`;
  }

  /** The newest attempts that match, newest first, and the counts. */
  #matches() {
    const shown = [];
    let matching = 0;
    let waiting = 0;
    const from = Math.max(0, this.#attempts.length - this.#keep);
    for (let n = this.#attempts.length - 1; n >= from; n -= 1) {
      const attempt = this.#attempts[n];
      if (this.#pausedAt !== null && attempt.number > this.#pausedAt) {
        waiting += 1;
      } else if (attempt.plain.includes(this.#needle)) {
        matching += 1;
        if (shown.length < this.#limit) shown.push(attempt);
      }
    }
    return { shown, matching, kept: this.#attempts.length - from - waiting, waiting };
  }

  /** Show exactly these attempts; rows that stay keep their element, and so the focus. */
  #place(shown) {
    const list = $("attempts");
    const hadFocus = list.contains(document.activeElement);
    const wanted = new Set(shown.map((attempt) => attempt.number));
    for (const [number, item] of this.#rows) {
      if (wanted.has(number)) continue;
      item.remove();
      this.#rows.delete(number);
    }
    let next = list.firstElementChild;
    for (const attempt of shown) {
      let item = this.#rows.get(attempt.number);
      if (item !== undefined && item === next) {
        next = next.nextElementSibling;
        continue;
      }
      if (item === undefined) {
        item = row(attempt, this.#receipts.get(attempt.number), this.#open);
        this.#rows.set(attempt.number, item);
      }
      list.insertBefore(item, next);
    }
    if (hadFocus && !list.contains(document.activeElement)) $("attempts-title").focus();
  }
}

function counted(shown, matching, kept) {
  if (kept === 0) return "";
  if (matching < kept) return `${count(matching, "match", "matches")} among ${count(kept, "call")}`;
  return shown < kept ? `the newest ${shown.toLocaleString("en")} of ${kept.toLocaleString("en")}` : String(kept);
}

/** A number as it was typed, in the form in which it is sent. */
function plain(text) {
  // Without its plus, a prefix may be the middle of a number, unless a whole number follows.
  return text.replace(/[\s-]/g, "").replace(/^(\+86|(00)?86(?=\d{11}$))/, "");
}
