<?php
$server = stream_socket_server("tcp://127.0.0.1:$argv[1]", $code, $text) or die($text);
for (;;) {
    $client = @stream_socket_accept($server, 3600, $peer);
    if (!$client) continue;
    while (($line = fgets($client)) !== false && trim($line) !== '');
    $body = 'peer ' . substr(strrchr($peer, ':'), 1) . "\n";
    fwrite($client, "HTTP/1.1 200 OK\r\nContent-Length: " . strlen($body) . "\r\nConnection: close\r\n\r\n$body");
    fclose($client);
}
