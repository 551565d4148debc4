// Functions for the page's elements and requests. Text is inserted as text, never as HTML.

import { t } from "./texts.js";

export const $ = (id) => document.getElementById(id);

/** An element with properties and children; a child that is a string becomes a text node. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** What a caller sent, with invisible characters spelt out, such as one that reverses the line. */
export function visible(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (character) => {
    const hex = character.codePointAt(0).toString(16);
    return hex.length > 4 ? `\\u{${hex}}` : `\\u${hex.padStart(4, "0")}`;
  });
}

let hiding = 0;

/** Say something for a few seconds, on the screen and to a screen reader. */
export function toast(text, isError = false) {
  const box = $("toast");
  // Hidden and shown again, so that it lies above a dialog that was opened since.
  if (box.matches(":popover-open")) box.hidePopover();
  box.classList.toggle("error", isError);
  box.showPopover();
  box.textContent = text;
  clearTimeout(hiding);
  hiding = setTimeout(() => box.hidePopover(), isError ? 8000 : 4000);
}

/** Disable or enable a button; if it has the focus, move the focus to `next`. */
export function disable(button, isOff, next) {
  if (isOff && document.activeElement === button) next.focus();
  button.disabled = isOff;
}

/** Send a request to the sandbox and return its answer. A refusal throws an Error with its reason. */
export async function ask(method, name, body) {
  let response;
  try {
    response = await fetch(`/_sandbox/${name}`, {
      method,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Error(t("no_answer"));
  }
  let answer;
  try {
    answer = await response.json();
  } catch {
    throw new Error(t("no_json", { status: response.status }));
  }
  if (!response.ok) throw new Error(answer?.error ?? t("refused_status", { status: response.status }));
  return answer;
}

/** Do something, and show the reason when it fails. True when it succeeded. */
export async function showFailure(action) {
  try {
    await action();
    return true;
  } catch (error) {
    toast(error.message, true);
    return false;
  }
}

/** Copy a text; where the browser does not allow it, select it in `element`. */
export async function copy(text, element) {
  try {
    await navigator.clipboard.writeText(text);
    toast(t("copied"));
  } catch {
    getSelection().selectAllChildren(element);
    toast(t("selected"));
  }
}

/** A button that copies the text of an element; `what` names it to a screen reader. */
export function copyButton(element, what, text = element.textContent) {
  const button = el("button", { type: "button", className: "small copy", "aria-label": t("copy_what", { what }) }, t("copy"));
  button.addEventListener("click", () => copy(text, element));
  return button;
}
