// client.js PORT: answers with both ends of the connection.
require('http').createServer(({ socket }, response) => {
  const { remoteAddress, remotePort, localAddress, localPort } = socket;
  response.end([remoteAddress, remotePort, localAddress, localPort].join(' '));
}).listen(process.argv[2], '0.0.0.0');
