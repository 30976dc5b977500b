// app.js MODE PORT: answers with its slot and the client's port.
const [mode, port] = [process.argv[2], Number(process.env.PORT || process.argv[3])];
const base = process.env.SERVERS;
const need = (name) => require(`${base}/node_modules/${name}`);
const text = (socket) => `slot ${process.env.ROUNDSMAN_SLOT} peer ${socket.remotePort}`;
const answer = (request, response) => {
  if (request.url === '/block') { const end = Date.now() + 300; while (Date.now() < end); }
  response.end(text(request.socket));
};
const tls = () => ({ key: require('fs').readFileSync(`${process.argv[4]}/key.pem`), cert: require('fs').readFileSync(`${process.argv[4]}/cert.pem`) });
const modes = {
  http: () => require('http').createServer(answer).listen(port, '127.0.0.1'),
  any: () => require('http').createServer(answer).listen(port),
  express: () => need('express')().get('/', (request, response) => response.send(text(request.socket))).listen(port, '127.0.0.1'),
  ws: () => new (need('ws').WebSocketServer)({ port, host: '127.0.0.1' }).on('connection', (ws, request) => { ws.send(text(request.socket)); ws.close(); }),
  https: () => require('https').createServer(tls(), answer).listen(port, '127.0.0.1'),
  http2: () => require('http2').createSecureServer(tls(), (request, response) => response.end(text(request.stream.session.socket))).listen(port, '127.0.0.1'),
  fastify: () => { const app = need('fastify')(); app.get('/', async (request) => text(request.socket)); app.listen({ port, host: '127.0.0.1' }); },
};
modes[mode]();
