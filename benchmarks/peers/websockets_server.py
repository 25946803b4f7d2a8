"""websockets as its page "Broadcasting" recommends, on uvloop: ``broadcast()`` to the set of a chat's connections, a token
check by PyJWT; aiohttp, in the same loop, takes the publishes.

python websockets_server.py PORT HTTP_PORT SECRET [CERTIFICATE KEY]
"""

import json
import ssl
import sys

import jwt
import uvloop
from aiohttp import web
from websockets.asyncio.server import broadcast, serve

SECRET = sys.argv[3]
rooms = {}


async def handler(client):
    user, joined = None, []
    try:
        async for text in client:
            message = json.loads(text)
            if message["type"] == "auth":
                user = jwt.decode(message["token"], SECRET, algorithms=["HS256"])
                await client.send(json.dumps({"type": "auth_result", "success": True}))
            elif message["type"] == "subscribe" and user:
                chat = message["chat_id"]
                rooms.setdefault(chat, set()).add(client)
                joined.append(chat)
                await client.send(json.dumps({"type": "subscribed", "id": message.get("id")}))
    finally:
        for chat in joined:
            rooms[chat].discard(client)


async def publish(request):
    for item in await request.json():
        payload = item["payload"]
        broadcast(rooms.get(payload["chat_id"], ()), json.dumps({"type": "chat_message", **payload}))
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
    async with serve(handler, "127.0.0.1", port, ssl=context, ping_interval=25, backlog=4096) as server:
        await server.serve_forever()


uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[4:]))
