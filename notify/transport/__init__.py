"""Clients' sockets: the public port, the opening handshake, WebSocket connections. Only this package imports autobahn."""
