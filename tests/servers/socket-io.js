// socket-io.js: tells each session the slot that it is in, and does nothing else for as long as one says (milliseconds).
const http = require('http').createServer()
const io = new (require('socket.io').Server)(http)
require('@socket.io/sticky').setupWorker(io)
io.on('connection', (socket) => {
  socket.on('slot', (answer) => answer(process.env.ROUNDSMAN_SLOT))
  socket.on('block', (time) => {
    const end = Date.now() + time
    while (Date.now() < end);
  })
})
http.listen(process.env.PORT_OF_APP, '127.0.0.1')
