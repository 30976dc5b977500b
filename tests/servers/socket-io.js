// socket-io.js: tells each session the slot that it is in.
const http = require('http').createServer()
const io = new (require('socket.io').Server)(http)
require('@socket.io/sticky').setupWorker(io)
io.on('connection', (socket) => socket.on('slot', (answer) => answer(process.env.ROUNDSMAN_SLOT)))
http.listen(process.env.PORT_OF_APP, '127.0.0.1')
