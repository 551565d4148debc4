// The drawer with everything that is known about one submit or another request.

import { $, ask, copyButton, el, showFailure, visible } from "./dom.js";
import { code, fault, kind, listenButton, number, outcome, reason, receiptText, time } from "./row.js";
import { language, t } from "./texts.js";

let shownNumber = null; // of a submit: other requests do not change
let latest = 0; // counts the requests: only the last one's answer is shown

export async function openDetails({ key, isOther, number: which }) {
  await showFailure(async () => {
    const details = await askFor(key);
    if (details === null) return;
    shownNumber = isOther ? null : which;
    show(details);
    if (!$("details").open) $("details").showModal();
  });
}

/** The details; null when others were asked for meanwhile, which are shown instead. */
async function askFor(key) {
  latest += 1;
  const mine = latest;
  try {
    const details = await ask("GET", key);
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
    const details = await askFor(`attempts/${shownNumber}`);
    // It may have been closed meanwhile.
    if (details !== null && $("details").open) show(details);
  });
}

/** Say that the sandbox has forgotten the open attempt: another may have its number now. */
export function forgetDetails() {
  shownNumber = null;
  latest += 1;
  if ($("details").open) $("details-gone").textContent = t("gone");
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
  $("details-gone").textContent = "";
  $("details-title").replaceChildren(...title(details));
  $("details-body").replaceChildren(
    details.kind ? "" : hero(details),
    facts(details),
    details.why ? why(details.why) : "",
    part(t("request"), ...request(details)),
    details.form.length > 0 || !details.kind ? part(t("fields"), form(details.form)) : "",
    part(t("answer"), ...answer(details)),
    details.receipt ? part(t("receipt"), receipt(details.receipt)) : "",
  );
}

function title(details) {
  if (details.kind) return [kind(details)];
  const [before, after] = t("call_to").split("{number}");
  return [before, number(details.mobile), after];
}

function hero(details) {
  const shown = code(details.content);
  const buttons = el("span", { className: "tools" }, details.content ? copyButton(shown, t("code"), details.content) : null);
  if (details.voice_id !== null) buttons.append(listenButton(details));
  return el("div", { className: "hero" }, shown, buttons);
}

function part(name, ...children) {
  return el("section", {}, el("h3", {}, name), ...children);
}

function facts(details) {
  const list = el("dl", { className: "facts" });
  const fact = (name, ...values) => list.append(el("dt", {}, name), el("dd", {}, ...values));
  const copied = (name, text) => {
    const shown = el("span", { className: "mono" }, visible(text));
    fact(name, shown, " ", copyButton(shown, name, text));
  };
  fact(t("outcome"), outcome(details));
  // In Chinese the vendor's own words are the meaning.
  if (details.code !== null && details.code !== 2 && details.meaning && language === "en") fact(t("meaning"), details.meaning);
  if (!details.why && reason(details)) fact(t("why"), reason(details));
  if (details.mobile) copied(t("number"), details.mobile);
  if (details.voice_id) copied(t("voice_id_label"), details.voice_id);
  if (details.fault !== null) fact(t("chaos"), fault(details));
  fact(t("taken"), time(details.time, true));
  fact(t("from"), el("span", { className: "mono" }, details.ip || t("this_process")));
  return list;
}

/** Why the account or the password was refused, and what to change. */
function why({ kind: name, facts: known }) {
  const list = el("dl", { className: "facts digests" });
  for (const each of ["expected", "received", "signed"]) {
    if (known[each] === undefined) continue;
    const shown = el("span", { className: "mono" }, visible(known[each]));
    // A digest of which only the beginning is known is of no use elsewhere.
    const isWhole = each !== "signed" && !known[each].includes("*");
    const button = isWhole ? copyButton(shown, t(each)) : null;
    list.append(el("dt", {}, t(each)), el("dd", {}, shown, " ", button ?? ""));
  }
  return el(
    "section",
    { className: "why" },
    el("h3", {}, t("why")),
    el("p", {}, visible(t(`reason_${name}`, known))),
    el("h3", {}, t("change")),
    el("p", {}, visible(t(`fix_${name}`, known))),
    list.children.length > 0 ? list : "",
  );
}

function request({ request: got, line }) {
  if (got === null && !line) return [el("p", { className: "quiet" }, t("request_none"))];
  return [copied(got === null ? line : raw(got), t("request"))];
}

function raw({ method, path, query, headers, body }) {
  const head = headers.map(([name, value]) => `${name}: ${value}`);
  return [`${method} ${path}${query ? "?" : ""}${query}`, ...head, ...(body ? ["", body] : [])].join("\n");
}

/** A text as it went over the wire, with a button that copies it. */
function copied(text, name, what = name) {
  // Line ends stay; everything else that is invisible is spelt out.
  const shown = text.split(/\r?\n/).map(visible).join("\n");
  const box = el("pre", { tabIndex: 0, role: "group", "aria-label": name }, shown);
  return el("div", { className: "copied" }, copyButton(box, what, text), box);
}

function form(fields) {
  if (fields.length === 0) return el("p", { className: "quiet" }, t("no_fields"));
  const rows = fields.map(([name, value]) =>
    el("tr", {}, el("th", { scope: "row" }, visible(name)), el("td", {}, visible(value))),
  );
  return el("table", { className: "form" }, el("tbody", {}, ...rows));
}

function answer(details) {
  if (details.status === 0) return [el("p", { className: "quiet" }, t("nothing_sent"))];
  const status = el("p", { className: "quiet" }, t("status", { status: details.status }));
  return details.answer ? [status, copied(details.answer, t("answer_body"), t("answer"))] : [status];
}

/** What the receiver answered to a push, or why there was no answer. */
function result({ kind: name, facts: known, result: english }) {
  if (!name) return el("span", { lang: "en" }, visible(english));
  return el("span", {}, visible(t(`result_${name}`, Object.fromEntries(known))));
}

function receipt(push) {
  const tries = push.tries.map((tried) =>
    el("li", { className: tried.accepted ? "taken" : "failed" }, time(tried.time), " ", result(tried)),
  );
  return el(
    "div",
    {},
    el("p", {}, `${push.code} `, el("span", { lang: "zh-CN" }, push.msg), ` · ${receiptText(push)}`),
    el("ol", { className: "tries" }, ...tries),
  );
}
