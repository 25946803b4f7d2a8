// Node's ws as its README shows it ("Server broadcast", "How to detect and close broken connections?"), with the
// optional bufferutil and utf-8-validate that it recommends, rooms, a token check by jsonwebtoken, and an HTTP endpoint
// to publish. A message is serialised once for all its receivers.
//
//     node ws_server.js PORT SECRET [deflate | tls CERTIFICATE KEY HTTP_PORT]
//
// Over TLS publishes come to a port of their own.
const fs = require('fs');
const http = require('http');
const https = require('https');
const jwt = require('jsonwebtoken');
const { WebSocketServer, WebSocket } = require('ws');

const [port, secret, mode, certificate, key, httpPort] = process.argv.slice(2);
const rooms = new Map();

const publishing = http.createServer((request, response) => {
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    for (const { payload } of JSON.parse(Buffer.concat(chunks))) {
      const data = JSON.stringify({ type: 'chat_message', ...payload });
      for (const client of rooms.get(payload.chat_id) ?? []) {
        if (client.readyState === WebSocket.OPEN) client.send(data);
      }
    }
    response.end();
  });
});

const server = mode === 'tls'
  ? https.createServer({ cert: fs.readFileSync(certificate), key: fs.readFileSync(key) })
  : publishing;

const wss = new WebSocketServer({
  server,
  path: '/ws',
  perMessageDeflate: mode === 'deflate' ? { serverNoContextTakeover: true, clientNoContextTakeover: true, threshold: 0 } : false,
});

wss.on('connection', (client) => {
  client.isAlive = true;
  client.joined = [];
  client.on('error', () => client.terminate());
  client.on('pong', function () { this.isAlive = true; });
  client.on('message', function (data) {
    const message = JSON.parse(data);
    if (message.type === 'auth') {
      this.user = jwt.verify(message.token, secret, { algorithms: ['HS256'] });
      this.send(JSON.stringify({ type: 'auth_result', success: true }));
    } else if (message.type === 'subscribe' && this.user) {
      if (!rooms.has(message.chat_id)) rooms.set(message.chat_id, new Set());
      rooms.get(message.chat_id).add(this);
      this.joined.push(message.chat_id);
      this.send(JSON.stringify({ type: 'subscribed', id: message.id }));
    }
  });
  client.on('close', function () {
    for (const chat of this.joined) rooms.get(chat).delete(this);
  });
});

setInterval(() => {
  for (const client of wss.clients) {
    if (!client.isAlive) { client.terminate(); continue; }
    client.isAlive = false;
    client.ping();
  }
}, 25000);

if (mode === 'tls') publishing.listen({ port: Number(httpPort), host: '127.0.0.1' });
server.listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 });

// Leaves as its documentation of close() asks: clients are closed by hand.
process.on('SIGTERM', () => {
  for (const client of wss.clients) client.close(1001);
  server.close(() => process.exit());
});
