use HTTP::Daemon;
my $server = HTTP::Daemon->new(LocalAddr => '127.0.0.1', LocalPort => $ARGV[0], ReuseAddr => 1, Listen => 100) or die $!;
while (1) {
    my $client = $server->accept or next;
    $client->get_request;
    $client->send_response(HTTP::Response->new(200, 'OK', [Connection => 'close'], 'peer ' . $client->peerport . "\n"));
    $client->close;
}
