require 'socket'
trap('TERM') { exit! 0 }
server = TCPServer.new('127.0.0.1', ARGV[0].to_i)
loop do
  Thread.new(server.accept) do |client|
    client.gets("\r\n\r\n")
    body = "peer #{client.peeraddr[1]}\n"
    client.write("HTTP/1.1 200 OK\r\nContent-Length: #{body.size}\r\nConnection: close\r\n\r\n#{body}")
    client.close
  end
end
