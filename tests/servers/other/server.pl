% server.pl PORT: answers with the client's port.
:- use_module(library(socket)).
:- use_module(library(readutil)).
:- initialization(main, main).

main([Text]) :-
    atom_number(Text, Port),
    tcp_socket(Server),
    tcp_setopt(Server, reuseaddr),
    tcp_bind(Server, '127.0.0.1':Port),
    tcp_listen(Server, 100),
    serve(Server).

serve(Server) :-
    repeat,
    tcp_accept(Server, Client, Peer),
    catch(answer(Client, Peer), _, true),
    fail.

answer(Client, _) :-
    tcp_open_socket(Client, In, Out),
    read_line_to_string(In, _),
    format(Out, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nanswered\n", []),
    close(Out), close(In).
