// more.js SERVER PORT: answers with the client's port.
const [kind, port] = [process.argv[2], Number(process.argv[3])];
const need = require('module').createRequire(`${process.env.SERVERS}/package.json`);
const host = '127.0.0.1';
const text = (socket) => `peer ${socket.remotePort}\n`;
const kinds = {
  net: () => require('net').createServer((socket) => socket.once('data', () => socket.end(text(socket)))).listen(port, host),
  koa: () => {
    const app = new (need('koa'))();
    app.use((context) => { context.body = text(context.req.socket); });
    app.listen(port, host);
  },
  hapi: async () => {
    const server = need('@hapi/hapi').server({ port, host });
    server.route({ method: 'GET', path: '/', handler: (request) => `peer ${request.info.remotePort}\n` });
    await server.start();
  },
  restify: () => {
    const server = need('restify').createServer();
    server.get('/', (request, response, next) => { response.sendRaw(text(request.socket)); next(); });
    server.listen(port, host);
  },
  nest: async () => {
    need('reflect-metadata');
    const { Controller, Get, Req, Module } = need('@nestjs/common');
    class Main { answer(request) { return text(request.socket); } }
    Req()(Main.prototype, 'answer', 0);
    Get()(Main.prototype, 'answer', Object.getOwnPropertyDescriptor(Main.prototype, 'answer'));
    Controller()(Main);
    class App {}
    Module({ controllers: [Main] })(App);
    const app = await need('@nestjs/core').NestFactory.create(App, { logger: false });
    await app.listen(port, host);
  },
  hono: () => {
    const app = new (need('hono').Hono)();
    const { getConnInfo } = need('@hono/node-server/conninfo');
    app.get('/', (context) => context.text(`peer ${getConnInfo(context).remote.port}\n`));
    need('@hono/node-server').serve({ fetch: app.fetch, port, hostname: host });
  },
};
kinds[kind]();
