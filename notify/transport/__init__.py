"""The sockets of clients: the public port, the opening handshake, WebSocket connections. The only package that imports autobahn."""
