// socket-io-clients.js PORT COUNT: sessions by polling. For each line on stdin all ask five times for their slot, those first connecting
// again that lost their session; a line on stdout says how it went. A line with SLOT MILLISECONDS has a session block its worker before.
const { io } = require('socket.io-client')
const [port, count] = process.argv.slice(2).map(Number)
const options = { transports: ['polling'], forceNew: true, reconnectionDelay: 50, reconnectionDelayMax: 300, timeout: 60000 }
let errors = 0
const start = () => {
  const socket = io(`http://127.0.0.1:${port}`, options)
  Object.assign(socket, { breaks: 0, lost: 0 })
  socket.on('disconnect', () => { socket.breaks++; socket.lost++ })
  socket.on('connect_error', () => errors++)
  return socket
}
const sockets = Array.from({ length: count }, start)
const ask = (socket) => new Promise((resolve) => {
  const again = () => resolve(ask(socket))
  if (!socket.connected) return socket.once('connect', again)
  socket.once('disconnect', again)
  socket.emit('slot', (slot) => { socket.off('disconnect', again); resolve(slot) })
})
const round = async (socket) => {
  const slots = []
  for (let n = 0; n < 5; n++) slots.push(await ask(socket))
  return slots
}
const per = (slots) => slots.reduce((all, slot) => ({ ...all, [slot]: (all[slot] || 0) + 1 }), {})
require('readline').createInterface({ input: process.stdin }).on('line', async (line) => {
  const [blocked, time] = line.split(' ')
  const blocker = line && sockets.find((socket) => socket.slot === blocked)
  if (blocker) await new Promise((resolve) => { blocker.emit('block', Number(time)); setTimeout(resolve, 100) })
  const slots = await Promise.all(sockets.map(round))
  const broken = sockets.filter((socket) => socket.breaks > 0).length
  const mixed = slots.filter((slots) => new Set(slots).size > 1).length
  // By the slots that they were in.
  const lost = per(sockets.filter((socket) => socket.lost > 0).map((socket) => socket.slot))
  sockets.forEach((socket, at) => Object.assign(socket, { slot: slots[at].at(-1), lost: 0 }))
  console.log(JSON.stringify({ sessions: slots.length, broken, errors, mixed, lost, slots: per(sockets.map((socket) => socket.slot)) }))
}).on('close', () => process.exit())
