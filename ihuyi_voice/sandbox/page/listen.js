// Speaks what the gateway would have said, with a voice of this machine.

import { toast } from "./dom.js";
import { t } from "./texts.js";

export const spoken = (content) => `您的验证码是 ${[...content].join(" ")}`;

const LOADING_MS = 1000;

// Some browsers load their voices on the first request, and report them later.
if ("speechSynthesis" in window) speechSynthesis.getVoices();

let waited = false;

/** The voices of this browser; waits once if they are not loaded yet. */
async function voices() {
  if (speechSynthesis.getVoices().length === 0 && !waited) {
    await new Promise((done) => {
      speechSynthesis.addEventListener("voiceschanged", done, { once: true });
      setTimeout(done, LOADING_MS);
    });
    waited = true;
  }
  return speechSynthesis.getVoices();
}

const isChinese = (voice) => /^(zh|cmn)\b/i.test(voice.lang) && !/HK|TW/i.test(voice.lang);

export async function listen(content) {
  const text = spoken(content);
  if (!("speechSynthesis" in window)) {
    toast(t("cannot_speak", { text }));
    return;
  }
  const chinese = (await voices()).filter(isChinese);
  // Any other voice speaks on its maker's servers, which would receive the code;
  // and without a choice the browser may take such a voice.
  const voice = chinese.find((one) => one.localService);
  if (voice === undefined) {
    const why = t(chinese.length > 0 ? "voices_remote" : "voices_none");
    toast(t("not_spoken", { text, why }));
    return;
  }
  const utterance = new SpeechSynthesisUtterance(text);
  utterance.lang = "zh-CN";
  utterance.rate = 0.85;
  utterance.voice = voice;
  speechSynthesis.cancel();
  speechSynthesis.speak(utterance);
  toast(text);
}
