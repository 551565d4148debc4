// A Node program: fetch with URLSearchParams, which sets the Content-Type by itself.
import { createHash } from "node:crypto";

const [url, account, key, mobile, content] = process.argv.slice(2);
const time = Math.floor(Date.now() / 1000);
const password = createHash("md5").update(account + key + mobile + content + time).digest("hex");
const answer = await fetch(`${url}/webservice/voice.php?method=Submit`, {
  method: "POST",
  body: new URLSearchParams({ account, password, mobile, content, time, format: "json" }),
});
const { code, msg, voiceid } = await answer.json();
console.log(code, msg, voiceid);
