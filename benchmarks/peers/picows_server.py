"""picows as its documentation shows it, on uvloop: a ``WSListener`` a client, ``send`` of one encoded text to each member of
a chat, a token check by PyJWT; aiohttp, in the same loop, takes the publishes.

python picows_server.py PORT HTTP_PORT SECRET [CERTIFICATE KEY]
"""

import json
import ssl
import sys

import jwt
import uvloop
from aiohttp import web
from picows import WSAutoPingStrategy, WSListener, WSMsgType, ws_create_server

SECRET = sys.argv[3]
rooms = {}


class Client(WSListener):
    user = None

    def on_ws_connected(self, transport):
        self.joined = []

    def on_ws_frame(self, transport, frame):
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif frame.msg_type == WSMsgType.TEXT:
            self.on_message(transport, json.loads(frame.get_payload_as_bytes()))

    def on_message(self, transport, message):
        if message["type"] == "auth":
            self.user = jwt.decode(message["token"], SECRET, algorithms=["HS256"])
            answer = {"type": "auth_result", "success": True}
        elif message["type"] == "subscribe" and self.user:
            rooms.setdefault(message["chat_id"], set()).add(transport)
            self.joined.append(message["chat_id"])
            answer = {"type": "subscribed", "id": message.get("id")}
        else:
            return
        transport.send(WSMsgType.TEXT, json.dumps(answer).encode())

    def on_ws_disconnected(self, transport):
        for chat in self.joined:
            rooms[chat].discard(transport)


async def publish(request):
    for item in await request.json():
        payload = item["payload"]
        data = json.dumps({"type": "chat_message", **payload}).encode()
        for transport in rooms.get(payload["chat_id"], ()):
            transport.send(WSMsgType.TEXT, data)
    return web.Response()


async def main(port, http_port, certificate):
    application = web.Application()
    application.router.add_post("/v1/publish", publish)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", http_port).start()
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*certificate)
    server = await ws_create_server(
        lambda request: Client(),
        "127.0.0.1",
        port,
        ssl=context,
        backlog=4096,
        enable_auto_ping=True,
        auto_ping_idle_timeout=25,
        auto_ping_strategy=WSAutoPingStrategy.PING_PERIODICALLY,
    )
    await server.serve_forever()


uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[4:]))
