// The inbox: shows each event, and passes on what the user asks for.

import { $, ask, count, el, showFailure, toast, visible } from "./dom.js";
import { prepareControls, showSettings } from "./controls.js";
import { forgetDetails, openDetails, prepareDetails, refreshDetails } from "./details.js";
import { follow } from "./events.js";
import { List } from "./list.js";

const ANNOUNCE_MS = 2000;
const DEFAULT_KEY = "sandbox-key";

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
  const refused = news.filter((one) => one.voice_id === null).length;
  const [first] = news;
  $("announcer").textContent =
    news.length === 1
      ? `New call to ${visible(first.mobile) || "no number"}, ${refused ? `refused with ${first.code}` : `code ${visible(first.content)}`}`
      : `${count(news.length, "new call")}, ${refused} refused`;
  news = [];
}

function showEnvironment({ api_id, has_default_key }) {
  const key = has_default_key ? DEFAULT_KEY : "<the api_key it was given>";
  const values = { BASE_URL: location.origin, API_ID: api_id, API_KEY: key };
  // On a narrow screen a line breaks before its value, not inside it.
  $("environment").replaceChildren(
    ...Object.entries(values).flatMap(([name, value], n) => [`${n > 0 ? "\n" : ""}export IHUYI_VOICE_${name}=`, el("wbr"), value]),
  );
}

function connection(state) {
  const box = $("connection");
  box.textContent = state === "live" ? "Live" : "Connection lost, retrying";
  box.className = `connection ${state}`;
}

async function copy(id) {
  try {
    await navigator.clipboard.writeText($(id).textContent);
    toast("Copied.");
  } catch {
    getSelection().selectAllChildren($(id));
    toast("Selected: copy it with your keyboard.");
  }
}

function prepareClearing() {
  const dialog = $("confirm");
  $("clear").addEventListener("click", () => {
    $("confirm-text").textContent = `${count(list.size, "call")} will be forgotten. The settings stay.`;
    dialog.showModal();
  });
  $("confirm-no").addEventListener("click", () => dialog.close());
  $("confirm-yes").addEventListener("click", async () => {
    await showFailure(() => ask("DELETE", "attempts"));
    dialog.close();
    $("search").focus();
  });
}

for (const id of ["environment", "first-call"]) $(`copy-${id}`).addEventListener("click", () => copy(id));
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
prepareControls();
prepareDetails();
follow(onEvent, connection);
