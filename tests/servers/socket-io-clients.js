// socket-io-clients.js PORT COUNT: sessions by polling. For each line on stdin all ask five times for their slot, those first connecting
// again that lost their session; a line on stdout says how it went.
const { io } = require('socket.io-client')
const [port, count] = process.argv.slice(2).map(Number)
const options = { transports: ['polling'], forceNew: true, reconnectionDelay: 50, reconnectionDelayMax: 300, timeout: 60000 }
let errors = 0
const start = () => {
  const socket = io(`http://127.0.0.1:${port}`, options)
  socket.breaks = 0
  socket.on('disconnect', () => socket.breaks++)
  socket.on('connect_error', () => errors++)
  return socket
}
const sockets = Array.from({ length: count }, start)
const ask = (socket) => new Promise((resolve) => {
  if (socket.connected) socket.timeout(10000).emit('slot', (error, slot) => resolve(error ? ask(socket) : slot))
  else socket.once('connect', () => resolve(ask(socket)))
})
const round = async (socket) => {
  const slots = []
  for (let n = 0; n < 5; n++) slots.push(await ask(socket))
  return slots
}
require('readline').createInterface({ input: process.stdin }).on('line', async () => {
  const slots = await Promise.all(sockets.map(round))
  const broken = sockets.filter((socket) => socket.breaks > 0).length
  const mixed = slots.filter((slots) => new Set(slots).size > 1).length
  const perSlot = {}
  for (const [slot] of slots) perSlot[slot] = (perSlot[slot] || 0) + 1
  console.log(JSON.stringify({ sessions: slots.length, broken, errors, mixed, slots: perSlot }))
}).on('close', () => process.exit())
