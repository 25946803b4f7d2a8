"""The backend of the example: users, chats and messages, for the page; who may hear what, for notify.

It holds the truth, and never waits for notify: what is to be told stands in the outbox (store.py), and the worker tells it. What changes
something is taken from our own page alone, and whoever is not in a chat gets the answer for a chat that there is not.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import accounts
import chats
import uvicorn
from accounts import NOTIFY_URL
from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from store import DATA, WORKSPACE, transaction

WEBHOOK_SECRET = (DATA / "webhook-secret").read_text()
PAGE = Path(__file__).parent / "page"

#: only what this server has, no script or style in the page itself, and no text that becomes HTML
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    f"frame-ancestors 'none'; require-trusted-types-for 'script'; connect-src 'self' {NOTIFY_URL} "
    f"{NOTIFY_URL.replace('ws', 'http', 1).removesuffix('ws')}"  # event streams, where a WebSocket does not open
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

app = FastAPI(openapi_url=None)
# No other name may lead here: whoever owns one can have it lead to this machine.
app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
app.include_router(accounts.routes)
app.include_router(chats.routes)
app.mount("/page", StaticFiles(directory=PAGE))
app.mount("/client", StaticFiles(directory=str(files("notify") / "web" / "client")))


@app.middleware("http")
async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse what another site's page has a browser do in its user's name: browsers say where such a request comes from."""
    origin, host = request.headers.get("origin"), request.headers.get("host")
    foreign = origin not in (None, f"http://{host}", f"https://{host}")
    if foreign and request.method not in ("GET", "HEAD"):
        return JSONResponse({"detail": "a request of another site's page"}, 403)
    response = await go_on(request)
    response.headers.update(HEADERS)
    if request.url.path.startswith("/api/"):
        response.headers["Cache-Control"] = "no-store"  # tokens and messages are in no browser's cache
    return response


@app.exception_handler(RequestValidationError)
def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """In words for the page, and without what was sent."""
    wrong = error.errors()[0]
    return JSONResponse({"detail": f"{wrong['loc'][-1]}: {wrong['msg']}"}, 422)


class Asked(BaseModel):
    """What notify asks for each subscription (docs/auth.md); ids may be text there, and are none of ours then."""

    user_id: int | str
    workspace_id: int | str
    chat_id: int | str


@app.post("/notify/authorize")
def authorize(asked: Asked, authorization: Annotated[str, Header()] = "") -> dict[str, bool]:
    """Whether a user may hear a chat."""
    if not hmac.compare_digest(authorization.encode(), f"Bearer {WEBHOOK_SECRET}".encode()):
        raise HTTPException(401, "this is for notify")
    with transaction(write=False) as db:
        ask = "SELECT 1 FROM members WHERE chat_id = ? AND user_id = ?"
        found = db.execute(ask, (asked.chat_id, asked.user_id)).fetchone()
    return {"allowed": asked.workspace_id == WORKSPACE and found is not None}


@app.get("/")
def index() -> FileResponse:
    """The page."""
    return FileResponse(PAGE / "index.html")


if __name__ == "__main__":
    # A page keeps its connections open: they are closed after a second, so that we can be started again.
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(os.environ.get("CHAT_PORT", "8000")),
        access_log=False,
        timeout_graceful_shutdown=1,
    )
