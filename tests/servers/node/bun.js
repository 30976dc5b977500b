Bun.serve({
  port: Number(process.argv[2]),
  hostname: '127.0.0.1',
  fetch: (request, server) => new Response(`peer ${server.requestIP(request).port}\n`),
});
