// Small programs that place a first call at this sandbox, one in each language.

import { $, el } from "./dom.js";

const MOBILE = "13912345678";
const CODE = "1125";

const double = (text) => JSON.stringify(text);
const single = (text) => `'${text.replace(/[\\']/g, "\\$&")}'`;
const inShell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const PROGRAMS = {
  curl: ({ url, account, key }) => `curl ${inShell(`${url}/webservice/voice.php?method=Submit`)} \\
  --data-urlencode account=${inShell(account)} \\
  --data-urlencode password=${inShell(key)} \\
  -d mobile=${MOBILE} -d content=${CODE} -d format=json`,

  PHP: ({ url, account, key }) => `<?php
$account = ${single(account)};
$key = ${single(key)};
$form = ['account' => $account, 'mobile' => '${MOBILE}', 'content' => '${CODE}', 'time' => (string) time()];
$form['password'] = md5($account . $key . $form['mobile'] . $form['content'] . $form['time']);
$context = stream_context_create(['http' => [
    'method' => 'POST',
    'header' => 'Content-Type: application/x-www-form-urlencoded',
    'content' => http_build_query($form + ['format' => 'json']),
]]);
echo file_get_contents(${single(`${url}/webservice/voice.php?method=Submit`)}, false, $context), "\\n";`,

  Java: ({ url, account, key }) => `import java.net.*;
import java.net.http.*;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.*;

public class FirstCall {
    public static void main(String[] args) throws Exception {
        String account = ${double(account)}, key = ${double(key)};
        String mobile = "${MOBILE}", content = "${CODE}";
        String time = String.valueOf(System.currentTimeMillis() / 1000);
        byte[] signed = (account + key + mobile + content + time).getBytes(StandardCharsets.UTF_8);
        String password = HexFormat.of().formatHex(MessageDigest.getInstance("MD5").digest(signed));
        String form = "account=" + URLEncoder.encode(account, StandardCharsets.UTF_8)
            + "&password=" + password + "&mobile=" + mobile
            + "&content=" + content + "&time=" + time + "&format=json";
        HttpRequest request = HttpRequest
            .newBuilder(URI.create(${double(`${url}/webservice/voice.php?method=Submit`)}))
            .header("Content-Type", "application/x-www-form-urlencoded")
            .POST(HttpRequest.BodyPublishers.ofString(form)).build();
        System.out.println(HttpClient.newHttpClient()
            .send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}`,

  Node: ({ url, account, key }) => `const { createHash } = require("node:crypto");

const account = ${double(account)}, key = ${double(key)};
const mobile = "${MOBILE}", content = "${CODE}";
const time = String(Math.floor(Date.now() / 1000));
const password = createHash("md5").update(account + key + mobile + content + time).digest("hex");
fetch(${double(`${url}/webservice/voice.php?method=Submit`)}, {
  method: "POST",
  body: new URLSearchParams({ account, password, mobile, content, time, format: "json" }),
}).then((answer) => answer.text()).then(console.log);`,

  Python: ({ url, account, key }) => `from ihuyi_voice import VoiceClient

with VoiceClient(${double(account)}, ${double(key)}, base_url=${double(url)}) as client:
    print(client.submit("${MOBILE}", "${CODE}"))`,
};

let values = { url: "", account: "", key: "" };
let chosen = "curl";

export function preparePrograms() {
  $("programs").append(
    ...Object.keys(PROGRAMS).map((name) => {
      const button = el("button", { type: "button", className: "small", "aria-pressed": "false" }, name);
      button.addEventListener("click", () => choose(name));
      return button;
    }),
  );
  choose(chosen);
}

/** Write the programs for this address and this account. */
export function showPrograms(latest) {
  values = latest;
  $("program").textContent = PROGRAMS[chosen](values);
}

function choose(name) {
  chosen = name;
  for (const button of $("programs").children) {
    button.setAttribute("aria-pressed", String(button.textContent === name));
  }
  showPrograms(values);
}
