<?php
// As a published Yii2 extension: it gives curl an array, which becomes multipart/form-data,
// for a submit and for a balance query.
[, $url, $account, $key, $mobile, $content] = $argv;

function post(string $url, array $fields): array {
    $boundary = '------------------------d74496d66958873e';
    $body = '';
    foreach ($fields as $name => $value) {
        $body .= "--$boundary\r\nContent-Disposition: form-data; name=\"$name\"\r\n\r\n$value\r\n";
    }
    $context = stream_context_create(['http' => [
        'method' => 'POST',
        'header' => "Content-Type: multipart/form-data; boundary=$boundary",
        'content' => "$body--$boundary--\r\n",
        'timeout' => 60,
    ]]);
    preg_match_all('/<(\w+)>([^<]*)<\/\1>/', file_get_contents($url, false, $context), $found);
    return array_combine($found[1], $found[2]);
}

$path = "$url/webservice/voice.php";
$time = time();
$submitted = post("$path?method=Submit", [
    'account' => $account,
    'password' => md5($account . $key . $mobile . $content . $time),
    'mobile' => $mobile,
    'content' => $content,
    'time' => $time,
]);
$balance = post("$path?method=GetNum", [
    'account' => $account,
    'password' => md5($account . $key . $time),
    'time' => $time,
]);
$id = $submitted['voiceid'] ?? $submitted['smsid'];
echo "{$submitted['code']} {$submitted['msg']} $id\n";
echo "{$balance['code']} {$balance['msg']} {$balance['num']}\n";
