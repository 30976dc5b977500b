%% server.escript PORT: answers with the client's port.
main([Port]) ->
    {ok, Server} = gen_tcp:listen(list_to_integer(Port), [binary, {active, false}, {reuseaddr, true}, {ip, {127, 0, 0, 1}}]),
    accept(Server).

accept(Server) ->
    {ok, Client} = gen_tcp:accept(Server),
    Pid = spawn(fun() -> receive go -> answer(Client) end end),
    gen_tcp:controlling_process(Client, Pid),
    Pid ! go,
    accept(Server).

answer(Client) ->
    {ok, _} = gen_tcp:recv(Client, 0),
    {ok, {_, Peer}} = inet:peername(Client),
    Body = io_lib:format("peer ~p~n", [Peer]),
    gen_tcp:send(Client, ["HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", Body]),
    gen_tcp:close(Client).
