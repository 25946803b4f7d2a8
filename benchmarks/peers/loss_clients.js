// Clients of the peers whose libraries are JavaScript's, each as its documentation shows it, each in one room, with its
// own way to come back. What they see goes to standard output, a line an event: "connected CLIENT" (subscribed),
// "message CLIENT ROOM NUMBER", "told CLIENT" (the library said that messages may be missing).
//
//     node loss_clients.js PEER PORT CLIENTS            CLIENTS is JSON: [[name, room, token], ...]
const WebSocket = require('ws');

const [peer, port, clients] = process.argv.slice(2);
const say = (...words) => process.stdout.write(words.join(' ') + '\n');
const message = (name, { chat_id: room, message_id: number }) => say('message', name, room, number);

const PEERS = {
  // https://socket.io/docs/v4/connection-state-recovery: `recovered` says whether what was missed follows.
  socketio(name, room, token) {
    const { io } = require('socket.io-client');
    const socket = io(`http://127.0.0.1:${port}`, { transports: ['websocket'], auth: { token }, forceNew: true });
    let before = false;
    socket.on('connect', () => {
      if (before && !socket.recovered) say('told', name);
      before = true;
      if (socket.recovered) say('connected', name);
      else socket.emit('subscribe', room, () => say('connected', name));
    });
    socket.on('chat_message', (payload) => message(name, payload));
  },

  // ws has no way back of its own: reconnecting-websocket, with its defaults, around it.
  ws(name, room, token) {
    const ReconnectingWebSocket = require('reconnecting-websocket');
    const socket = new ReconnectingWebSocket(`ws://127.0.0.1:${port}/ws`, [], { WebSocket });
    socket.addEventListener('open', () => {
      socket.send(JSON.stringify({ type: 'auth', token }));
      socket.send(JSON.stringify({ type: 'subscribe', chat_id: room, id: 1 }));
    });
    socket.addEventListener('message', ({ data }) => {
      const frame = JSON.parse(data);
      if (frame.type === 'subscribed') say('connected', name);
      else if (frame.type === 'chat_message') message(name, frame);
    });
  },

  // https://github.com/nats-io/nats.js: it connects and subscribes again by itself, for ever where it is told so.
  async nats(name, room) {
    globalThis.WebSocket = WebSocket;
    const { wsconnect } = require('@nats-io/nats-core');
    const connection = await wsconnect({
      servers: `ws://127.0.0.1:${port}`, maxReconnectAttempts: -1, ignoreClusterUpdates: true,
    });
    const subscription = connection.subscribe(`chat.${room}`);
    (async () => {
      let away = false; // it says "reconnect" once for each try
      for await (const { type } of connection.status()) {
        if (away && type === 'reconnect') say('connected', name);
        if (type === 'disconnect' || type === 'reconnect') away = type === 'disconnect';
      }
    })();
    await connection.flush();
    say('connected', name);
    for await (const received of subscription) message(name, received.json());
  },

  // https://nchan.io: NchanSubscriber comes back with the id of the last message (the subprotocol ws+meta.nchan).
  nchan(name, room) {
    // Made for browsers: it wants a window that tells of its end.
    Object.assign(globalThis, { WebSocket, window: globalThis, addEventListener() {} });
    const NchanSubscriber = require('nchan');
    const subscriber = new NchanSubscriber(`ws://127.0.0.1:${port}/sub/${room}`, { subscriber: 'websocket' });
    subscriber.on('connect', () => say('connected', name));
    subscriber.on('message', (text) => message(name, JSON.parse(text)));
    subscriber.on('error', () => {});
    subscriber.start();
  },
};

process.stdout.on('error', () => process.exit());
for (const [name, room, token] of JSON.parse(clients)) {
  Promise.resolve(PEERS[peer](name, room, token)).catch((error) => {
    process.stderr.write(`${name}: ${error.stack}\n`);
    process.exit(1);
  });
}
