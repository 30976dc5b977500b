(* server.ml PORT: answers with the client's port. *)
let () =
  let port = int_of_string Sys.argv.(1) in
  let server = Unix.socket Unix.PF_INET Unix.SOCK_STREAM 0 in
  Unix.setsockopt server Unix.SO_REUSEADDR true;
  Unix.bind server (Unix.ADDR_INET (Unix.inet_addr_loopback, port));
  Unix.listen server 100;
  while true do
    let client, peer = Unix.accept server in
    let number = match peer with Unix.ADDR_INET (_, number) -> number | _ -> 0 in
    ignore (Unix.read client (Bytes.create 4096) 0 4096);
    let body = Printf.sprintf "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npeer %d\n" number in
    ignore (Unix.write_substring client body 0 (String.length body));
    Unix.close client
  done
