"""python-socketio as its documentation recommends for production: an ASGI application under uvicorn (with uvloop and
httptools), rooms, WebSocket only, a token check by PyJWT; an HTTP endpoint publishes.

    python python_socketio_server.py PORT SECRET
"""

import json
import sys

import jwt
import socketio
import uvicorn

SECRET = sys.argv[2]
sio = socketio.AsyncServer(async_mode="asgi", transports=["websocket"], cors_allowed_origins="*")


@sio.event
async def connect(sid, environ, auth):
    jwt.decode(auth["token"], SECRET, algorithms=["HS256"])


@sio.event
async def subscribe(sid, chat):
    await sio.enter_room(sid, f"chat:{chat}")


async def publish(scope, receive, send):
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    for item in json.loads(body):
        payload = item["payload"]
        await sio.emit("chat_message", payload, room=f"chat:{payload['chat_id']}")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


async def application(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/v1/publish":
        await publish(scope, receive, send)
    else:
        await engine(scope, receive, send)


engine = socketio.ASGIApp(sio)
uvicorn.run(application, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", backlog=4096)
