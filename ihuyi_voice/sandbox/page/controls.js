// The gateway's settings. A field that is being edited is not overwritten.

import { $, ask, disable, el, showFailure, toast } from "./dom.js";
import { FAULTS } from "./faults.js";
import { figure, t } from "./texts.js";

let chaos = {};
let asking = 0; // changes by a switch that were not answered yet
let missed = false; // settings that came meanwhile were not shown
const edited = new Map(); // by a field's id: its value before the edit that is not set yet
const current = new Map(); // by a field's id: the gateway's value
const rows = new Map(); // a fault's switch and percentage by its name

export function prepareControls() {
  $("balance-form").addEventListener("submit", (event) => {
    change(event, { balance: $("balance").valueAsNumber }, t("balance_set"));
  });
  $("blacklist-form").addEventListener("submit", (event) => {
    change(event, { blacklist: lines("blacklist") }, t("blacklist_set"));
  });
  $("allowed-form").addEventListener("submit", (event) => {
    const allowed = lines("allowed");
    const said = t(allowed.length ? "allowed_set" : "allowed_any");
    change(event, { allowed_ips: allowed.length ? allowed : null }, said);
  });
  $("receipt-form").addEventListener("submit", (event) => {
    const url = $("receipt-url").value.trim();
    const said = t(url ? "receipts_on" : "receipts_off");
    change(event, { receipt_url: url || null }, said);
  });
  for (const id of ["balance", "blacklist", "allowed", "receipt-url"]) prepareField($(id));
  $("frozen").addEventListener("change", async (event) => {
    const box = event.target;
    const done = await switched(() => ask("PATCH", "settings", { frozen: box.checked }));
    if (!done) box.checked = !box.checked;
  });
  $("calm").addEventListener("click", () => showFailure(() => ask("DELETE", "chaos")));
  $("faults").append(...FAULTS.map(faultRow), faultRow("receipt_undelivered"), latencyRow());
}

function prepareField(field) {
  let before = "";
  field.addEventListener("focus", () => {
    before = field.value;
  });
  field.addEventListener("input", () => {
    if (!edited.has(field.id)) edited.set(field.id, before);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) takeBack(field);
  });
  // Moving on to the button beside it does not end the edit.
  field.form.addEventListener("focusout", (event) => {
    if (field.form.contains(event.relatedTarget)) return;
    const isChanged = edited.has(field.id) && ![edited.get(field.id), current.get(field.id)].includes(field.value);
    if (!isChanged) takeBack(field);
  });
}

function takeBack(field) {
  edited.delete(field.id);
  if (current.has(field.id)) field.value = current.get(field.id);
}

export function showSettings(settings) {
  $("left").textContent = figure(settings.balance);
  show("balance", String(settings.balance));
  show("blacklist", settings.blacklist.join("\n"));
  show("allowed", (settings.allowed_ips ?? []).join("\n"));
  show("receipt-url", settings.receipt_url ?? "");
  // Settings that come meanwhile may be older than the change.
  missed = asking > 0;
  if (missed) return;
  $("frozen").checked = settings.frozen;
  $("frozen-at-will").hidden = settings.frozen_with === 408;
  $("frozen-for-abuse").hidden = settings.frozen_with !== 408;
  showChaos(settings.chaos);
}

function showChaos(latest) {
  chaos = latest;
  let anything = false;
  for (const [name, { box, percent }] of rows) {
    const often = probability(name);
    box.checked = often > 0;
    anything ||= often > 0;
    if (often > 0) show(percent.id, String(Number((often * 100).toPrecision(4))));
  }
  if (chaos.code !== null) show("code-number", String(chaos.code));
  const isLate = chaos.latency > 0 || chaos.latency_jitter > 0;
  $("latency").checked = isLate;
  if (isLate) {
    show("latency-seconds", String(chaos.latency));
    show("latency-jitter", String(chaos.latency_jitter));
  }
  disable($("calm"), !(anything || isLate), $("chaos-title"));
}

/** Show a value, unless the user is editing the field. */
function show(id, value) {
  current.set(id, value);
  if (document.activeElement !== $(id) && !edited.has(id)) $(id).value = value;
}

function lines(id) {
  return $(id).value.split(/[\n,;]+/).map((line) => line.trim()).filter(Boolean);
}

function change(event, settings, said) {
  event.preventDefault();
  return showFailure(async () => {
    await ask("PATCH", "settings", settings);
    for (const field of event.target.elements) {
      edited.delete(field.id);
      // Until the gateway sends the value as it keeps it.
      if (current.has(field.id)) current.set(field.id, field.value);
    }
    toast(said);
  });
}

function probability(name) {
  if (name !== "code") return chaos[name];
  return chaos.code === null ? 0 : chaos.code_probability;
}

function faultRow(name) {
  const title = t(`fault_${name}`);
  const box = el("input", { type: "checkbox", id: name, role: "switch", "aria-describedby": `${name}-help` });
  const percent = el("input", {
    type: "number", id: `${name}-percent`, min: "0.01", max: "100", step: "any", value: "100", required: true,
    "aria-label": t("how_often", { fault: title }),
  });
  rows.set(name, { box, percent });
  const label = el("label", { htmlFor: name }, title);
  const inputs = el("span", { className: "unit" }, percent, el("span", { "aria-hidden": "true" }, "%"));
  const parts = [box, label, inputs];
  let number = null;
  if (name === "code") {
    number = el("input", {
      type: "number", id: "code-number", step: "1", value: "408", required: true,
      "aria-label": t("code_answered"),
    });
    parts.splice(2, 0, number);
  }
  const put = () => {
    // A value that was set elsewhere may be outside the field's bounds: it can still be switched off.
    if (!box.checked) return changeChaos(number ? { code: null, code_probability: 1 } : { [name]: 0 });
    if (!(number?.reportValidity() ?? true) || !percent.reportValidity()) return Promise.resolve(false);
    const often = percent.valueAsNumber / 100;
    return changeChaos(number ? { code: number.valueAsNumber, code_probability: often } : { [name]: often });
  };
  box.addEventListener("change", async () => {
    if (!(await put())) box.checked = !box.checked;
  });
  for (const input of [percent, number]) {
    input?.addEventListener("change", () => {
      if (box.checked) put();
    });
  }
  return el("div", { className: "switch" }, ...parts, el("p", { id: `${name}-help` }, t(`fault_${name}_help`)));
}

function latencyRow() {
  const box = el("input", { type: "checkbox", id: "latency", role: "switch", "aria-describedby": "latency-help" });
  const least = secondsField("latency-seconds", "1", t("late_least"));
  const more = secondsField("latency-jitter", "0", t("late_more"));
  const put = async () => {
    if (!box.checked) return changeChaos({ latency: 0, latency_jitter: 0 });
    const isNone = least.valueAsNumber === 0 && more.valueAsNumber === 0;
    least.setCustomValidity(isNone ? t("late_zero") : "");
    if (!least.reportValidity() || !more.reportValidity()) return false;
    return changeChaos({ latency: least.valueAsNumber, latency_jitter: more.valueAsNumber });
  };
  box.addEventListener("change", async () => {
    if (!(await put())) box.checked = !box.checked;
  });
  for (const field of [least, more]) {
    field.addEventListener("change", () => {
      if (box.checked) put();
    });
  }
  return el(
    "div",
    { className: "switch" },
    box,
    el("label", { htmlFor: "latency" }, t("late")),
    inSeconds(least),
    el("p", { id: "latency-help" }, t("late_help")),
    el("span", { className: "more", "aria-hidden": "true" }, t("late_random")),
    inSeconds(more),
  );
}

function secondsField(id, value, name) {
  return el("input", { type: "number", id, min: "0", step: "any", value, required: true, "aria-label": name });
}

function inSeconds(field) {
  return el("span", { className: "unit" }, field, el("span", { "aria-hidden": "true" }, t("late_unit")));
}

function changeChaos(changed) {
  return switched(async () => {
    const answer = await ask("PATCH", "chaos", changed);
    if (asking === 1) showChaos(answer);
  });
}

async function switched(action) {
  asking += 1;
  const done = await showFailure(action);
  asking -= 1;
  if (asking === 0 && missed) await showFailure(async () => showSettings(await ask("GET", "settings")));
  return done;
}
