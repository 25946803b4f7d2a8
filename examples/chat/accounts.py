"""Who is there: signing in, sessions, and tokens for notify. By a name alone, which is for an example only.

All else is meant: a session is a cookie that no script can read, and of which the database has the digest alone; a token is for
minutes, so that who has signed out is soon nobody to notify, too.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from typing import Annotated, Any

import jwt
import store
from fastapi import APIRouter, Cookie, Depends, HTTPException, Response
from pydantic import BaseModel, StringConstraints
from store import WORKSPACE, transaction

NOTIFY_URL = os.environ.get("NOTIFY_URL", "ws://127.0.0.1:8080/ws")  # for the page
SECRET = (store.DATA / "token-secret").read_bytes()
SESSION, TOKEN = 30 * 24 * 3600, 300  # seconds that they are good for

routes = APIRouter(prefix="/api")


class Person(BaseModel):
    """A user."""

    id: int
    name: str


class Named(BaseModel):
    """Who is meant."""

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=40)]


def digest(session: str) -> str:
    """What is kept of a session."""
    return hashlib.sha256(session.encode()).hexdigest()


def find(session: Annotated[str, Cookie()] = "") -> Person | None:
    """Whose session it is; None: nobody's."""
    ask = "SELECT id, name FROM users JOIN sessions ON user_id = id WHERE digest = ? AND ends > ?"
    with transaction(write=False) as db:
        row = db.execute(ask, (digest(session), time.time())).fetchone()
    return Person(**row) if row else None


Perhaps = Annotated[Person | None, Depends(find)]


def signed_in(found: Perhaps) -> Person:
    """Who asks, who has to be somebody."""
    if found is None:
        raise HTTPException(401, "sign in first")
    return found


Me = Annotated[Person, Depends(signed_in)]


@routes.post("/session", status_code=204)
def sign_in(named: Named, response: Response) -> None:
    """Begin a session. A real one asks for more than a name."""
    session = secrets.token_urlsafe()
    with transaction() as db:
        db.execute("INSERT INTO users (name) VALUES (?) ON CONFLICT DO NOTHING", (named.name,))
        [user_id] = db.execute("SELECT id FROM users WHERE name = ?", (named.name,)).fetchone()
        ends = int(time.time()) + SESSION
        db.execute("INSERT INTO sessions VALUES (?, ?, ?)", (digest(session), user_id, ends))
    # Over https: secure=True, too.
    response.set_cookie("session", session, max_age=SESSION, httponly=True, samesite="strict")


@routes.get("/session")
def who(user: Perhaps) -> dict[str, Any]:
    """Who is signed in, if anybody is, and where notify is."""
    return {"user": user, "notify_url": NOTIFY_URL}


@routes.delete("/session", status_code=204)
def sign_out(response: Response, session: Annotated[str, Cookie()] = "") -> None:
    """End a session. Tokens that it was given are good for some minutes more."""
    with transaction() as db:
        db.execute("DELETE FROM sessions WHERE digest = ?", (digest(session),))
    response.delete_cookie("session")


@routes.get("/token")
def token(me: Me) -> dict[str, Any]:
    """A token for notify, as its client takes it."""
    now = int(time.time())
    claims = {"id": me.id, "workspace_id": WORKSPACE, "iat": now, "exp": now + TOKEN}
    return {"value": jwt.encode(claims, SECRET, "HS256"), "expiresAt": now + TOKEN}
