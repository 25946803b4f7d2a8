"""Autobahn as its examples show it: a factory that keeps its clients and calls ``sendMessage`` on each.

After ``examples/twisted/websocket/broadcast`` of autobahn-python, with rooms, a token check by PyJWT, and an HTTP
endpoint to publish, on Twisted's default reactor. A client that only opens a connection measures the bare handshake.

    python autobahn_server.py WEBSOCKET_PORT HTTP_PORT SECRET
"""

import json
import sys

import jwt
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site


class ChatProtocol(WebSocketServerProtocol):
    user = None

    def onMessage(self, payload, isBinary):
        message = json.loads(payload)
        if message["type"] == "auth":
            self.user = jwt.decode(message["token"], self.factory.secret, algorithms=["HS256"])
            self.sendMessage(json.dumps({"type": "auth_result", "success": True}).encode())
        elif message["type"] == "subscribe" and self.user:
            self.factory.join(self, message["chat_id"])
            self.sendMessage(json.dumps({"type": "subscribed", "id": message.get("id")}).encode())

    def connectionLost(self, reason):
        WebSocketServerProtocol.connectionLost(self, reason)
        self.factory.leave(self)


class ChatFactory(WebSocketServerFactory):
    protocol = ChatProtocol

    def __init__(self, secret):
        super().__init__()
        self.secret = secret
        self.setProtocolOptions(autoPingInterval=25, autoPingTimeout=10)
        self.rooms = {}
        self.joined = {}

    def join(self, client, chat):
        self.rooms.setdefault(chat, set()).add(client)
        self.joined.setdefault(client, set()).add(chat)

    def leave(self, client):
        for chat in self.joined.pop(client, ()):
            self.rooms[chat].discard(client)

    def broadcast(self, chat, payload):
        for client in self.rooms.get(chat, ()):
            client.sendMessage(payload)


class Publish(Resource):
    isLeaf = True

    def __init__(self, factory):
        super().__init__()
        self.factory = factory

    def render_POST(self, request):
        for item in json.load(request.content):
            payload = item["payload"]
            data = json.dumps({"type": "chat_message", **payload}).encode()
            self.factory.broadcast(payload["chat_id"], data)
        return b""


factory = ChatFactory(sys.argv[3])
reactor.listenTCP(int(sys.argv[1]), factory, backlog=4096, interface="127.0.0.1")
reactor.listenTCP(int(sys.argv[2]), Site(Publish(factory)), interface="127.0.0.1")
reactor.run()
