# server.exs PORT: answers with the client's port.
defmodule Server do
  def accept(server) do
    {:ok, client} = :gen_tcp.accept(server)
    pid = spawn(fn -> receive do: (:go -> answer(client)) end)
    :gen_tcp.controlling_process(client, pid)
    send(pid, :go)
    accept(server)
  end

  def answer(client) do
    {:ok, _} = :gen_tcp.recv(client, 0)
    {:ok, {_, port}} = :inet.peername(client)
    :gen_tcp.send(client, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npeer #{port}\n")
    :gen_tcp.close(client)
  end
end

[port] = System.argv()
options = [:binary, active: false, reuseaddr: true, ip: {127, 0, 0, 1}]
{:ok, server} = :gen_tcp.listen(String.to_integer(port), options)
Server.accept(server)
