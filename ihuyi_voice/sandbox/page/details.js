// The drawer with everything that is known about one attempt.

import { $, ask, el, showFailure, visible } from "./dom.js";
import { code, fault, listenButton, number, outcome, receiptText, time } from "./row.js";

let shownNumber = null;
let latest = 0; // counts the requests: only the last one's answer is shown

export async function openDetails(which) {
  await showFailure(async () => {
    const details = await askFor(which);
    if (details === null) return;
    shownNumber = which;
    show(details);
    if (!$("details").open) $("details").showModal();
  });
}

/** The details; null when others were asked for meanwhile, which are shown instead. */
async function askFor(which) {
  latest += 1;
  const mine = latest;
  try {
    const details = await ask("GET", `attempts/${which}`);
    return mine === latest ? details : null;
  } catch (error) {
    if (mine === latest) throw error;
    return null;
  }
}

/** Show the open attempt again when its receipt changed. */
export async function refreshDetails(receipts) {
  if (!$("details").open) return;
  if (!receipts.some((receipt) => receipt.number === shownNumber)) return;
  await showFailure(async () => {
    const details = await askFor(shownNumber);
    // It may have been closed meanwhile.
    if (details !== null && $("details").open) show(details);
  });
}

/** Say that the sandbox has forgotten the open attempt: another may have its number now. */
export function forgetDetails() {
  shownNumber = null;
  latest += 1;
  if ($("details").open) $("details-gone").textContent = "The sandbox no longer remembers this call.";
}

export function prepareDetails() {
  const dialog = $("details");
  $("details-close").addEventListener("click", () => dialog.close());
  // A click whose target is the dialog itself was beside its content.
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("close", () => {
    shownNumber = null;
    // The browser returns the focus to the row's button, if that still exists.
    const active = document.activeElement;
    if (active === document.body || dialog.contains(active)) $("attempts-title").focus();
  });
}

function show(details) {
  const placed = details.voice_id !== null;
  $("details-gone").textContent = "";
  $("details-title").replaceChildren("Call to ", number(details.mobile));
  $("details-body").replaceChildren(
    el("div", { className: "hero" }, code(details.content), placed ? listenButton(details) : null),
    facts(details),
    part("Form as received", form(details.form)),
    part("Answer as sent", ...answer(details)),
    ...(details.receipt === null ? [] : [part("Receipt", receipt(details.receipt))]),
  );
}

function part(title, ...children) {
  return el("section", {}, el("h3", {}, title), ...children);
}

function facts(details) {
  const list = el("dl", { className: "facts" });
  const fact = (name, value) => list.append(el("dt", {}, name), el("dd", {}, value));
  fact("Outcome", outcome(details));
  if (details.voice_id === null && details.meaning) fact("Meaning", details.meaning);
  if (details.voice_id !== null) fact("Voice id", el("span", { className: "mono" }, details.voice_id));
  if (details.fault !== null) fact("Chaos", fault(details));
  fact("Taken", time(details.time, true));
  fact("From", el("span", { className: "mono" }, details.ip || "this process"));
  return list;
}

function form(fields) {
  if (fields.length === 0) {
    const why = "No fields. Was the Content-Type application/x-www-form-urlencoded?";
    return el("p", { className: "quiet" }, why);
  }
  const rows = fields.map(([name, value]) =>
    el("tr", {}, el("th", { scope: "row" }, visible(name)), el("td", {}, visible(value))),
  );
  return el("table", { className: "form" }, el("tbody", {}, ...rows));
}

function answer(details) {
  if (details.status === 0) {
    return [el("p", { className: "quiet" }, "Nothing was sent: the caller cannot know the outcome.")];
  }
  return [
    el("p", { className: "quiet" }, `HTTP status ${details.status}`),
    el("pre", { tabIndex: 0, "aria-label": "The body of the answer" }, details.answer),
  ];
}

function receipt(push) {
  const tries = push.tries.map((tried) =>
    el("li", { className: tried.accepted ? "taken" : "failed" }, time(tried.time), " ", visible(tried.result)),
  );
  return el(
    "div",
    {},
    el("p", {}, `${push.code} `, el("span", { lang: "zh-CN" }, push.msg), ` · ${receiptText(push)}`),
    el("ol", { className: "tries" }, ...tries),
  );
}
