"""Runs in uvicorn. ``NOTIFY_SECRETS`` is the path of the file with the keys."""

from importlib import import_module

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.sessions import SessionMiddleware

app = FastAPI()
app.add_middleware(SessionMiddleware, secret_key="of this test alone", same_site="lax")
app.include_router(import_module("tokens_fastapi").router)
app.mount("/files", StaticFiles(directory="."))


@app.get("/")
def page() -> HTMLResponse:
    return HTMLResponse("a page")


@app.post("/sign-in")
def sign_in(request: Request) -> None:
    request.session["user_id"] = 5


@app.post("/sign-out")
def sign_out(request: Request) -> None:
    request.session.clear()
