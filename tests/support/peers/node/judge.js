// Node's HTTP parser as a judge: one line of JSON in, {id, bytes}, for each connection; one line out, {id, requests, error}.
// `bytes` and bodies are base64; a header is [name, value] in latin-1. The bytes are all that is sent, then comes a FIN.
'use strict';
const http = require('http');
const net = require('net');
const readline = require('readline');

const seen = new Map(); // by client port

function note(request, body) {
  seen.get(request.socket.remotePort).requests.push({
    method: request.method,
    target: request.url,
    version: request.httpVersion,
    headers: request.rawHeaders,
    trailers: request.rawTrailers,
    body: body.toString('base64'),
    upgrade: request.upgrade === true,
  });
}

function serve(request, response) {
  const parts = [];
  request.on('data', (part) => parts.push(part));
  request.on('end', () => {
    note(request, Buffer.concat(parts));
    response.end();
  });
}

const server = http.createServer({ maxHeaderSize: 1 << 20, keepAliveTimeout: 60000, requestTimeout: 0 }, serve);
server.maxHeadersCount = 0;
server.on('checkContinue', serve);
server.on('checkExpectation', serve);
server.on('upgrade', (request, socket, head) => {
  request.upgrade = true;
  note(request, head);
  socket.end();
});
server.on('clientError', (error, socket) => {
  const one = seen.get(socket.remotePort);
  if (one && error.code !== 'ECONNRESET') one.error = error.code || String(error);
  socket.destroy();
});

function judge(line) {
  const { id, bytes } = JSON.parse(line);
  return new Promise((resolve) => {
    const socket = net.connect({ port: server.address().port, host: '127.0.0.1' }, () => {
      const port = socket.localPort;
      seen.set(port, { id, requests: [], error: null });
      socket.end(Buffer.from(bytes, 'base64'));
      socket.on('close', () => {
        resolve(JSON.stringify(seen.get(port)));
        seen.delete(port);
      });
    });
    socket.on('error', () => {});
    socket.resume();
  });
}

server.listen(0, '127.0.0.1', async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    process.stdout.write((await judge(line)) + '\n');
  }
  process.stdout.write(JSON.stringify({ methods: http.METHODS }) + '\n');
  server.close();
  server.closeAllConnections();
});
