use Mojolicious::Lite -signatures;
get '/' => sub ($c) { $c->render(text => 'peer ' . $c->tx->remote_port . "\n") };
app->start;
