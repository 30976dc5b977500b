# server PORT: answers with the client's port.
require "http/server"

server = HTTP::Server.new do |context|
  context.response.print "peer #{context.request.remote_address.as(Socket::IPAddress).port}\n"
end
server.bind_tcp "127.0.0.1", ARGV[0].to_i
server.listen
