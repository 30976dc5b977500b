Deno.serve({ port: Number(Deno.args[0]), hostname: '127.0.0.1' }, (request, info) => new Response(`peer ${info.remoteAddr.port}\n`));
