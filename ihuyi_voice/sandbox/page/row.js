// One submit or another request as a row of the list, and the parts that the details also show.

import { el, visible } from "./dom.js";
import { listen } from "./listen.js";
import { language, t } from "./texts.js";

const two = (n) => String(n).padStart(2, "0");

export function time(seconds, withDate = false) {
  const at = new Date(seconds * 1000);
  // The gateway's clock may be any number, even one that is no valid date.
  if (Number.isNaN(at.getTime())) return el("time", {}, String(seconds));
  const clock = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  const date = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return el(
    "time",
    { dateTime: at.toISOString(), title: `${date} ${clock}` },
    withDate ? `${date} ${clock}` : clock,
  );
}

/** The number, shown in groups and copied in one piece. */
export function number(mobile) {
  if (!/^\d{11}$/.test(mobile)) return el("span", { className: "number odd" }, visible(mobile) || t("no_number"));
  const groups = [mobile.slice(0, 3), mobile.slice(3, 7), mobile.slice(7)];
  return el("span", { className: "number" }, ...groups.map((digits) => el("span", {}, digits)));
}

export function code(content) {
  const isCode = /^\d{4,6}$/.test(content);
  return el("span", { className: isCode ? "code" : "code odd" }, visible(content) || t("no_code"));
}

/** What became of a submit or of another request. */
export function outcome(entry) {
  const [name, isGood] = verdict(entry);
  return el(
    "span",
    { className: `outcome ${isGood ? "placed" : "refused"}` },
    el("span", { className: "badge" }, t(name)),
    el("span", { className: "verdict" }, ...words(entry)),
  );
}

function verdict(entry) {
  if (!entry.kind) return entry.voice_id !== null ? ["placed", true] : ["refused", false];
  if (entry.kind !== "balance") return ["failed", false];
  return entry.code === 2 ? ["answered", true] : ["refused", false];
}

function words(entry) {
  if (entry.code !== null) {
    const words = [`${entry.code} `, el("span", { lang: "zh-CN" }, entry.msg)];
    return entry.code === 2 && language === "en" ? [...words, ` (${t(entry.kind ? "query_succeeded" : "submit_succeeded")})`] : words;
  }
  return entry.status === 0 ? [] : [t("status", { status: entry.status })];
}

/** Why it was refused, in a sentence; null when the code says it all. */
export function reason(entry) {
  if (entry.why) return el("span", { className: "reason" }, visible(t(`reason_${entry.why.kind}`, entry.why.facts)));
  if (entry.kind === "closed") return el("span", { className: "reason" }, t("kind_closed_help"));
  if (entry.problem) return el("span", { className: "reason" }, t(`problem_${entry.problem}`));
  // What the sandbox has no text for is in English.
  return entry.reason ? el("span", { className: "reason", lang: "en" }, visible(entry.reason)) : null;
}

/** The vendor's text in English; null in Chinese, and where a sentence says more. */
function meaning(entry) {
  return language === "en" && entry.meaning && !entry.why ? el("span", { className: "reason" }, entry.meaning) : null;
}

/** The fault of the answer, or null; in a row it is marked as chaos. */
export function fault(entry, isRow = false) {
  if (entry.fault === null) return null;
  const said = t(`fault_${entry.fault}_instead`);
  return el("span", { className: "fault" }, isRow ? t("chaos_aside", { fault: said }) : said);
}

export function receiptText(receipt) {
  if (receipt.accepted) return t(receipt.code === 2 ? "receipt_delivered" : "receipt_undelivered");
  if (receipt.ended) return t("receipt_never");
  const failed = receipt.tries.length;
  return failed === 0 ? t("receipt_coming") : t("receipt_failing", { n: failed });
}

export function listenButton(attempt) {
  const button = el(
    "button",
    { type: "button", className: "listen", "aria-label": t("listen_to", { code: visible(attempt.content) }) },
    t("listen"),
  );
  button.addEventListener("click", (event) => {
    event.stopPropagation();
    listen(attempt.content);
  });
  return button;
}

/** What another request was: "Balance query" and so on. */
export const kind = (entry) => t(`kind_${entry.kind}`);

/** `open` is called with the entry when its details are asked for. */
export function row(entry, receipt, open) {
  const label = entry.isOther
    ? t("details_of_other", { what: kind(entry) })
    : t("details_of", { number: visible(entry.mobile) || t("no_number") });
  const details = el("button", { type: "button", className: "open", "aria-label": label, "aria-haspopup": "dialog" }, t("details"));
  const isPlaced = !entry.isOther && entry.voice_id !== null;
  const why = entry.kind === "closed" ? null : (reason(entry) ?? meaning(entry));
  const asides = el("span", { className: "asides" }, why, fault(entry, true), el("span", { className: "receipt" }));
  const item = el(
    "li",
    { className: "attempt" },
    el("span", { className: "when" }, time(entry.time)),
    ...(entry.isOther ? other(entry) : call(entry)),
    el("span", { className: "what" }, outcome(entry), asides),
    el("span", { className: "actions" }, isPlaced ? listenButton(entry) : null, details),
  );
  item.dataset.number = entry.number;
  // A click anywhere on the row opens it, unless text is selected to be copied. The
  // button always opens it, and can be reached by keyboard.
  details.addEventListener("click", (event) => {
    event.stopPropagation();
    open(entry);
  });
  item.addEventListener("click", () => {
    if (getSelection().isCollapsed) open(entry);
  });
  if (receipt) showReceipt(item, receipt);
  return item;
}

function call(entry) {
  const id = entry.voice_id === null ? "" : t("voice_id", { id: entry.voice_id });
  return [code(entry.content), el("span", { className: "who" }, number(entry.mobile), el("span", { className: "id" }, id))];
}

function other(entry) {
  const line = el("span", { className: "number odd" }, visible(entry.line));
  return [el("span", { className: "kind" }, kind(entry)), el("span", { className: "who" }, line)];
}

/** Mark a row as new, or take the mark away; without a row there is nothing to mark. */
export function showNew(item, isNew) {
  if (!item || item.classList.contains("new") === isNew) return;
  item.classList.toggle("new", isNew);
  if (isNew) item.querySelector(".when").append(el("span", { className: "mark" }, t("new")));
  else item.querySelector(".mark").remove();
}

export function showReceipt(item, receipt) {
  const box = item.querySelector(".receipt");
  box.textContent = receiptText(receipt);
  box.classList.toggle("failing", !receipt.accepted && receipt.tries.length > 0);
}
