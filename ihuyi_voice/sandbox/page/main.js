// The inbox: shows each event, and passes on what the user asks for.

import { $, ask, copy, el, showFailure, visible } from "./dom.js";
import { prepareControls, showSettings } from "./controls.js";
import { forgetDetails, openDetails, prepareDetails, refreshDetails } from "./details.js";
import { follow } from "./events.js";
import { List } from "./list.js";
import { kind } from "./row.js";
import { preparePrograms, showPrograms } from "./programs.js";
import { counted, figure, prepareTexts, t } from "./texts.js";

const ANNOUNCE_MS = 2000;
const DEFAULT_KEY = "sandbox-key";

prepareTexts();
const list = new List(openDetails);
let settings = {};
let news = [];

function onEvent(event) {
  if (event.settings) {
    // An event holds only the settings that changed.
    settings = { ...settings, ...event.settings };
    showSettings(settings);
    showEnvironment(settings);
  }
  const { restarted, added } = list.receive(event);
  if (restarted) forgetDetails();
  if (event.receipts) refreshDetails(event.receipts);
  announce(added);
}

/** At most one sentence every few seconds, however many calls there were. */
function announce(added) {
  if (added.length === 0) return;
  if (news.length === 0) setTimeout(say, ANNOUNCE_MS);
  news.push(...added);
}

function say() {
  $("announcer").textContent = news.length === 1 ? said(news[0]) : saidOfAll();
  news = [];
}

function said(one) {
  if (one.isOther) return t("said_other", { what: kind(one) });
  const number = visible(one.mobile) || t("no_number");
  return one.voice_id === null
    ? t("said_refused", { number, code: one.code })
    : t("said_placed", { number, code: visible(one.content) });
}

function saidOfAll() {
  const calls = news.filter((one) => !one.isOther);
  if (calls.length === 0) return t("said_other", { what: [...new Set(news.map(kind))].join(", ") });
  const refused = calls.filter((one) => one.voice_id === null).length;
  return t("said_many", { calls: counted("new_call", calls.length), refused: figure(refused) });
}

function showEnvironment({ api_id, has_default_key }) {
  const key = has_default_key ? DEFAULT_KEY : t("key_given");
  showPrograms({ url: location.origin, account: api_id, key });
  const values = { BASE_URL: location.origin, API_ID: api_id, API_KEY: key };
  // On a narrow screen a line breaks before its value, not inside it.
  $("environment").replaceChildren(
    ...Object.entries(values).flatMap(([name, value], n) => [`${n > 0 ? "\n" : ""}export IHUYI_VOICE_${name}=`, el("wbr"), value]),
  );
}

function connection(state) {
  const box = $("connection");
  box.textContent = t(state);
  box.className = `connection ${state}`;
}

function prepareClearing() {
  const dialog = $("confirm");
  $("clear").addEventListener("click", () => {
    $("confirm-text").textContent = counted("clear_text", list.size);
    dialog.showModal();
  });
  $("confirm-no").addEventListener("click", () => dialog.close());
  $("confirm-yes").addEventListener("click", async () => {
    await showFailure(() => ask("DELETE", "attempts"));
    dialog.close();
    $("search").focus();
  });
}

for (const id of ["environment", "first-call", "program"]) {
  $(`copy-${id}`).addEventListener("click", () => copy($(id).textContent, $(id)));
}
// On a narrow screen the calls come first.
const narrow = matchMedia("(width < 60rem)");
const fold = () => { $("settings").open = !narrow.matches; };
narrow.addEventListener("change", fold);
fold();
$("to-settings").addEventListener("click", (event) => {
  event.preventDefault();
  $("settings").open = true;
  $("settings-summary").scrollIntoView();
  $("settings-summary").focus();
});
prepareClearing();
preparePrograms();
prepareControls();
prepareDetails();
follow(onEvent, connection);
