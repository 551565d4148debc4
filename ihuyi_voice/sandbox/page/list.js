// The list of requests: it holds all that are kept and shows the newest that match.

import { $, disable, el } from "./dom.js";
import { row, showNew, showReceipt } from "./row.js";
import { Seen } from "./seen.js";
import { counted, figure, t } from "./texts.js";

const STEP = 100;

const FILTERS = {
  all: () => true,
  placed: (one) => !one.isOther && one.voice_id !== null,
  refused: (one) => (one.isOther ? one.code !== null && one.code !== 2 : one.voice_id === null),
  fault: (one) => one.fault !== null,
  other: (one) => one.isOther,
};

export class List {
  #open;
  #entries = []; // oldest first
  #receipts = new Map(); // by the attempt's number
  #rows = new Map(); // by the entry's key, of those that are shown
  #seen = new Seen((key, isNew) => showNew(this.#rows.get(key), isNew));
  #isOpen = false; // whether an event came
  #keep = Infinity;
  #taken = 0; // entries so far, kept or not
  #needle = "";
  #filter = "all";
  #figures = new Map(); // where each filter's count is shown
  #limit = STEP;
  #pausedAt = null; // the newest entry's place when it was paused
  #drawing = 0;

  /** `open` is called with the entry whose details are asked for. */
  constructor(open) {
    this.#open = (entry) => {
      this.#seen.see(entry.key);
      open(entry);
    };
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
    $("filters").append(...Object.keys(FILTERS).map((name) => this.#choice(name)));
  }

  get size() {
    return this.#entries.length;
  }

  /**
   * Take an event in. `restarted`: the list shows another history now, and
   * nothing of it is new. `added`: the entries that are new.
   */
  receive({ snapshot, settings, attempts = [], others = [], receipts = [] }) {
    this.#keep = settings?.keep ?? this.#keep;
    const entries = inOrder(attempts, others);
    // A snapshot after a lost connection holds the newest entry of the list; one of another history does not.
    const newest = this.#entries.at(-1);
    const isKnown = entries.some((one) => one.key === newest?.key && one.time === newest.time);
    // An empty list shows any history: only what came before the page was opened is not new.
    const restarted = Boolean(snapshot) && (newest === undefined ? !this.#isOpen : !isKnown);
    this.#isOpen = true;
    if (restarted) this.#forget();
    const last = { true: this.#last(true), false: this.#last(false) };
    const added = entries.filter((one) => one.number > last[one.isOther]);
    for (const entry of added) {
      this.#taken += 1;
      this.#entries.push({ ...entry, place: this.#taken });
    }
    // In steps, so that a list at its full length is not copied for each event.
    if (this.#entries.length > this.#keep * 2.2) this.#trim();
    for (const receipt of receipts) {
      this.#receipts.set(receipt.number, receipt);
      const shown = this.#rows.get(`attempts/${receipt.number}`);
      if (shown) showReceipt(shown, receipt);
    }
    if (!restarted) this.#seen.add(added.map((one) => one.key));
    this.draw();
    return { restarted, added: restarted ? [] : added };
  }

  /** Draw before the next repaint: once, for all events until then. */
  draw() {
    this.#drawing ||= requestAnimationFrame(() => this.#draw());
  }

  #choice(name) {
    const id = `filter-${name}`;
    const box = el("input", { type: "radio", name: "filter", id, checked: name === "all" });
    box.addEventListener("change", () => {
      this.#filter = name;
      this.#limit = STEP;
      this.draw();
    });
    const shown = el("span", { className: "figure" });
    this.#figures.set(name, shown);
    return el("span", { className: "filter" }, box, el("label", { htmlFor: id }, t(`filter_${name}`), " ", shown));
  }

  /** The number of the newest attempt or other request; 0 without one. */
  #last(isOther) {
    return this.#entries.findLast((one) => one.isOther === isOther)?.number ?? 0;
  }

  #forget() {
    this.#entries = [];
    this.#receipts.clear();
    this.#seen.clear();
    // Another gateway counts from 1 too: rows with the same number are other calls.
    this.#rows.clear();
    $("attempts").replaceChildren();
    if (this.#pausedAt !== null) this.#pausedAt = 0;
  }

  #trim() {
    const kept = this.#kept();
    this.#entries = this.#entries.filter(kept);
    const oldest = this.#entries.find((one) => !one.isOther)?.number ?? Infinity;
    for (const number of this.#receipts.keys()) if (number < oldest) this.#receipts.delete(number);
  }

  /** Whether an entry is still remembered: of the submits and of the others, the last `keep`. */
  #kept() {
    const first = { true: this.#last(true) - this.#keep, false: this.#last(false) - this.#keep };
    return (one) => one.number > first[one.isOther];
  }

  #pause() {
    this.#pausedAt = this.#pausedAt === null ? this.#taken : null;
    // Its name shows the state: aria-pressed would be read as "Resume, pressed".
    $("pause").classList.toggle("on", this.#pausedAt !== null);
    this.#draw();
  }

  #draw() {
    cancelAnimationFrame(this.#drawing);
    this.#drawing = 0;
    const { shown, matching, kept, waiting, figures } = this.#matches();
    this.#place(shown);
    const isEmpty = kept === 0 && waiting === 0;
    $("attempts").hidden = shown.length === 0;
    $("more").hidden = matching <= shown.length;
    $("empty").hidden = !isEmpty;
    $("filters").hidden = isEmpty;
    for (const [name, box] of this.#figures) box.textContent = figure(figures[name]);
    // Paused before the first call, there is nothing to search.
    const isHeldBack = kept === 0 && waiting > 0;
    const held = counted("wait", waiting);
    $("paused").hidden = !isHeldBack;
    $("paused-text").textContent = held;
    $("no-match").hidden = kept === 0 || matching > 0;
    $("no-match-title").textContent = t(this.#needle === "" ? "no_match_filter" : "no_match");
    $("no-match-text").textContent = `${counted("searched", kept)}${waiting > 0 ? ` ${held}` : ""}`;
    $("count").textContent = summed(shown.length, matching, kept);
    disable($("clear"), isEmpty, $("attempts-title"));
    $("pause").textContent = this.#pausedAt === null ? t("pause") : t("resume", { n: figure(waiting) });
  }

  /** The newest entries that match, newest first, and the counts. */
  #matches() {
    const shown = [];
    const figures = Object.fromEntries(Object.keys(FILTERS).map((name) => [name, 0]));
    let matching = 0;
    let kept = 0;
    let waiting = 0;
    const isKept = this.#kept();
    for (let n = this.#entries.length - 1; n >= 0; n -= 1) {
      const entry = this.#entries[n];
      if (!isKept(entry)) continue;
      if (this.#pausedAt !== null && entry.place > this.#pausedAt) {
        waiting += 1;
        continue;
      }
      kept += 1;
      if (!isFound(entry, this.#needle)) continue;
      for (const name in FILTERS) if (FILTERS[name](entry)) figures[name] += 1;
      if (!FILTERS[this.#filter](entry)) continue;
      matching += 1;
      if (shown.length < this.#limit) shown.push(entry);
    }
    return { shown, matching, kept, waiting, figures };
  }

  /** Show exactly these entries; rows that stay keep their element, and so the focus. */
  #place(shown) {
    const list = $("attempts");
    const hadFocus = list.contains(document.activeElement);
    const wanted = new Set(shown.map((entry) => entry.key));
    for (const [key, item] of this.#rows) {
      if (wanted.has(key)) continue;
      item.remove();
      this.#rows.delete(key);
    }
    let next = list.firstElementChild;
    for (const entry of shown) {
      let item = this.#rows.get(entry.key);
      if (item !== undefined && item === next) {
        next = next.nextElementSibling;
        continue;
      }
      if (item === undefined) {
        item = row(entry, entry.isOther ? undefined : this.#receipts.get(entry.number), this.#open);
        showNew(item, this.#seen.has(entry.key));
        this.#rows.set(entry.key, item);
      }
      list.insertBefore(item, next);
    }
    if (hadFocus && !list.contains(document.activeElement)) $("attempts-title").focus();
  }
}

/** Submits and other requests in the order in which they came. */
function inOrder(attempts, others) {
  const entries = attempts.map((one) => ({ ...one, isOther: false, key: `attempts/${one.number}`, plain: plain(one.mobile) }));
  let n = 0;
  for (const one of others) {
    // Before it, so many submits were taken.
    while (n < entries.length && (entries[n].isOther || entries[n].number <= one.after)) n += 1;
    entries.splice(n, 0, { ...one, isOther: true, key: `others/${one.number}` });
    n += 1;
  }
  return entries;
}

/** Whether a number holds what was typed, or a code or a voice id begins with it. */
function isFound(entry, needle) {
  if (needle === "") return true;
  if (String(entry.code) === needle) return true;
  if (entry.isOther) return entry.line.includes(needle);
  // The ids of a run begin with the same digits, so a few digits would find them all.
  const isId = needle.length > 8 && entry.voice_id !== null && entry.voice_id.startsWith(needle);
  return entry.plain.includes(needle) || entry.content.startsWith(needle) || isId;
}

function summed(shown, matching, kept) {
  if (kept === 0) return "";
  if (matching < kept) return t(`matches_${matching === 1 ? "one" : "many"}`, { matches: figure(matching), calls: counted("call", kept) });
  return shown < kept ? t("newest", { shown: figure(shown), kept: figure(kept) }) : String(kept);
}

/** A number as it was typed, in the form in which it is sent. */
function plain(text) {
  // Without its plus, a prefix may be the middle of a number, unless a whole number follows.
  return text.replace(/[\s-]/g, "").replace(/^(\+86|(00)?86(?=\d{11}$))/, "");
}
