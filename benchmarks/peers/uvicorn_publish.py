"""The least that an HTTP server in Python does for a publish: uvicorn with httptools and uvloop, that parses the JSON and answers.

python uvicorn_publish.py PORT
"""

import json
import sys

import uvicorn

HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"2")]


async def application(scope, receive, send):
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    json.loads(body)
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": b"{}"})


uvicorn.run(
    application, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False, lifespan="off"
)
