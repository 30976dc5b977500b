sub { [200, ['Content-Type' => 'text/plain'], ['answered, peer ' . ($_[0]{REMOTE_PORT} // '') . "\n"]] };
