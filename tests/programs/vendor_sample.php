<?php
// As the vendor's PHP sample: a POST form with the APIKEY itself as the password, XML read
// with regular expressions. Those skip a root with a namespace and find its fields flat.
[, $url, $account, $key, $mobile, $content] = $argv;
$form = "account=$account&password=$key&mobile=$mobile&content=$content";
$context = stream_context_create(['http' => [
    'method' => 'POST',
    'header' => 'Content-Type: application/x-www-form-urlencoded',
    'content' => $form,
    'timeout' => 60,
]]);
$xml = file_get_contents("$url/webservice/voice.php?method=Submit", false, $context);
preg_match_all('/<(\w+)>([^<]*)<\/\1>/', $xml, $found);
$fields = array_combine($found[1], $found[2]);
$id = $fields['voiceid'] ?? $fields['smsid'];
echo "{$fields['code']} {$fields['msg']} $id\n";
