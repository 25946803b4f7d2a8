// Socket.IO as its documentation recommends: rooms, WebSocket only, and what its pages "Performance tuning" and
// "Memory usage" advise (bufferutil and utf-8-validate installed, the HTTP request of the handshake let go). The token
// is checked by jsonwebtoken in a middleware; an HTTP endpoint publishes.
//
//     node socketio_server.js PORT SECRET [recovery]
//
// "recovery" turns on connection state recovery, with the values of its page.
const http = require('http');
const jwt = require('jsonwebtoken');
const { Server } = require('socket.io');

const [port, secret, recovery] = process.argv.slice(2);

const server = http.createServer((request, response) => {
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    for (const { payload } of JSON.parse(Buffer.concat(chunks))) {
      io.to(`chat:${payload.chat_id}`).emit('chat_message', payload);
    }
    response.end();
  });
});

const io = new Server(server, {
  transports: ['websocket'],
  serveClient: false,
  ...(recovery && { connectionStateRecovery: { maxDisconnectionDuration: 2 * 60 * 1000, skipMiddlewares: true } }),
});

io.engine.on('connection', (rawSocket) => { rawSocket.request = null; });

io.use((socket, next) => {
  try {
    socket.data.user = jwt.verify(socket.handshake.auth.token, secret, { algorithms: ['HS256'] });
    next();
  } catch (error) {
    next(error);
  }
});

io.on('connection', (socket) => {
  socket.on('subscribe', (chat, done) => {
    socket.join(`chat:${chat}`);
    done();
  });
});

server.listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 });

// Leaves as its documentation shows it: clients are disconnected, and the HTTP server is closed.
process.on('SIGTERM', () => io.close(() => process.exit()));
