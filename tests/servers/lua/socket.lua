local socket = require("socket")
local server = assert(socket.bind("127.0.0.1", tonumber(arg[1]), 100))
while true do
  local client = server:accept()
  if client then
    repeat local line = client:receive("*l") until not line or line == ""
    local _, port = client:getpeername()
    local body = "peer " .. port .. "\n"
    client:send("HTTP/1.1 200 OK\r\nContent-Length: " .. #body .. "\r\nConnection: close\r\n\r\n" .. body)
    client:close()
  end
end
