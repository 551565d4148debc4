// Speaks what the gateway would have said, with the browser's own voice.

import { toast } from "./dom.js";

export const spoken = (content) => `您的验证码是 ${[...content].join(" ")}`;

export function listen(content) {
  const text = spoken(content);
  if (!("speechSynthesis" in window)) {
    toast(`This browser cannot speak. It would say: ${text}`);
    return;
  }
  const voices = speechSynthesis.getVoices();
  const chinese = voices.find((voice) => /^(zh|cmn)\b/i.test(voice.lang) && !/HK|TW/i.test(voice.lang));
  const utterance = new SpeechSynthesisUtterance(text);
  utterance.lang = "zh-CN";
  utterance.rate = 0.85;
  if (chinese) utterance.voice = chinese;
  speechSynthesis.cancel();
  speechSynthesis.speak(utterance);
  // Without a Chinese voice most browsers stay silent.
  toast(chinese ? text : `${text} (this system has no Chinese voice)`);
}
