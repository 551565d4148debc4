// One attempt as a row of the list, and the parts that the details also show.

import { el, visible } from "./dom.js";
import { FAULTS } from "./faults.js";
import { listen } from "./listen.js";

const INSTEAD = Object.fromEntries(FAULTS.map(([name, , , instead]) => [name, instead]));

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
  if (!/^\d{11}$/.test(mobile)) return el("span", { className: "number odd" }, visible(mobile) || "no number");
  const groups = [mobile.slice(0, 3), mobile.slice(3, 7), mobile.slice(7)];
  return el("span", { className: "number" }, ...groups.map((digits) => el("span", {}, digits)));
}

export function code(content) {
  const isCode = /^\d{4,6}$/.test(content);
  return el("span", { className: isCode ? "code" : "code odd" }, visible(content) || "no code");
}

export function outcome(attempt) {
  const placed = attempt.voice_id !== null;
  const badge = placed ? "Placed" : "Refused";
  return el(
    "span",
    { className: `outcome ${placed ? "placed" : "refused"}` },
    el("span", { className: "badge" }, badge),
    el("span", { className: "verdict" }, `${attempt.code} `, el("span", { lang: "zh-CN" }, attempt.msg)),
  );
}

/** The fault of the answer, or null; `before` precedes its words. */
export function fault(attempt, before = "") {
  if (attempt.fault === null) return null;
  return el("span", { className: "fault" }, before + (INSTEAD[attempt.fault] ?? attempt.fault));
}

export function receiptText(receipt) {
  const what = receipt.code === 2 ? "delivered" : "not delivered";
  if (receipt.accepted) return `receipt taken: ${what}`;
  if (receipt.ended) return "receipt never taken";
  const failed = receipt.tries.length;
  return failed === 0 ? "receipt on its way" : `receipt: ${failed} of 3 pushes failed`;
}

export function listenButton(attempt) {
  const button = el(
    "button",
    { type: "button", className: "listen", "aria-label": `Listen to the code ${visible(attempt.content)}` },
    "Listen",
  );
  button.addEventListener("click", (event) => {
    event.stopPropagation();
    listen(attempt.content);
  });
  return button;
}

/** `open` is called with the attempt's number when its details are asked for. */
export function row(attempt, receipt, open) {
  const details = el(
    "button",
    {
      type: "button",
      className: "open",
      "aria-label": `Details of the call to ${visible(attempt.mobile) || "no number"}`,
      "aria-haspopup": "dialog",
    },
    "Details",
  );
  const item = el(
    "li",
    { className: "attempt" },
    time(attempt.time),
    code(attempt.content),
    el(
      "span",
      { className: "who" },
      number(attempt.mobile),
      el("span", { className: "id" }, attempt.voice_id === null ? "" : `voice id ${attempt.voice_id}`),
    ),
    el("span", { className: "what" }, outcome(attempt), el("span", { className: "asides" }, fault(attempt, "chaos: "), el("span", { className: "receipt" }))),
    el("span", { className: "actions" }, attempt.voice_id === null ? null : listenButton(attempt), details),
  );
  item.dataset.number = attempt.number;
  // A click anywhere on the row opens it, unless text is selected to be copied. The
  // button always opens it, and can be reached by keyboard.
  details.addEventListener("click", (event) => {
    event.stopPropagation();
    open(attempt.number);
  });
  item.addEventListener("click", () => {
    if (getSelection().isCollapsed) open(attempt.number);
  });
  if (receipt) showReceipt(item, receipt);
  return item;
}

export function showReceipt(item, receipt) {
  const box = item.querySelector(".receipt");
  box.textContent = receiptText(receipt);
  box.classList.toggle("failing", !receipt.accepted && receipt.tries.length > 0);
}
