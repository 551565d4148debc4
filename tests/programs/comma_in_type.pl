# As an older .NET program: the Content-Type has a comma before its charset, and the method
# in the query is in lower case.
use strict;
use warnings;
use IO::Socket::INET;
use Digest::MD5 qw(md5_hex);

my ($url, $account, $key, $mobile, $content) = @ARGV;
my ($place) = $url =~ m{//(.+)};
my $time = time;
my $password = md5_hex("$account$key$mobile$content$time");
my $form = "account=$account&password=$password&mobile=$mobile&content=$content&time=$time";
my $length = length $form;
my $connection = IO::Socket::INET->new(PeerAddr => $place, Timeout => 60) or die $@;
print $connection join("\r\n",
    "POST /webservice/voice.php?method=submit HTTP/1.1",
    "Host: $place",
    "Connection: close",
    "Content-Type: application/x-www-form-urlencoded,charset=utf-8",
    "Content-Length: $length",
    "",
    $form);
my $answer = join '', <$connection>;
my ($code) = $answer =~ m{<code>\s*(\d+)};
my ($msg) = $answer =~ m{<msg>\s*([^<]*?)\s*</msg>};
my ($id) = $answer =~ m{<(?:voice|sms)id>\s*(\d+)};
print "$code $msg $id\n";
