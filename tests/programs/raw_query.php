<?php
// As the GET example on the vendor's page and many scripts: nothing in the query is encoded.
// PHP sends a URL as it is, raw UTF-8 and blanks included.
[, $url, $account, $key, $mobile, $content] = $argv;
$query = "account=$account&password=$key&mobile=$mobile&content=$content&rd=语音 验证码";
$context = stream_context_create(['http' => ['timeout' => 60, 'ignore_errors' => true]]);
$answer = file_get_contents("$url/webservice/voice.php?method=Submit&$query", false, $context);
preg_match_all('/<(\w+)>([^<]*)<\/\1>/', $answer, $found);
$fields = array_combine($found[1], $found[2]);
$id = $fields['voiceid'] ?? $fields['smsid'];
echo "{$fields['code']} {$fields['msg']} $id\n";
