"""Chats, their members and messages. Each change and what is to be told of it are one transaction (store.py)."""

from __future__ import annotations

import json
import os
import time
from http.client import HTTPException as NoAnswer
from sqlite3 import Connection, Row
from typing import Annotated, Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import store
from accounts import Me, Named, Person
from fastapi import APIRouter, HTTPException, Path, Query
from pydantic import BaseModel, Field, StringConstraints
from store import WORKSPACE, transaction

NOTIFY_API = os.environ.get("NOTIFY_API_URL", "http://127.0.0.1:8081")
API_KEY = (store.DATA / "backend-key").read_text()
MOST = 2**63 - 1  # ids are smaller
PAGE = 50  # messages

Id = Annotated[int, Path(ge=1, lt=MOST)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]

routes = APIRouter(prefix="/api/chats")


class New(BaseModel):
    """A message; ``key`` is the page's, the same with each try."""

    key: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    text: Text


class Edit(BaseModel):
    """What a message says now."""

    text: Text


class Read(BaseModel):
    """The newest message that was read."""

    to: Annotated[int, Field(ge=1, lt=MOST)]


def must_see(db: Connection, chat_id: int, me: Person) -> Row:
    """The chat, which it is in."""
    ask = "SELECT * FROM chats JOIN members ON chat_id = id WHERE id = ? AND user_id = ?"
    row: Row | None = db.execute(ask, (chat_id, me.id)).fetchone()
    if row is None:
        raise HTTPException(404, "no such chat")
    return row


def people(db: Connection, chat_id: int) -> list[dict[str, Any]]:
    """A chat's members."""
    ask = "SELECT id, name FROM users JOIN members ON user_id = id WHERE chat_id = ? ORDER BY name"
    return [dict(row) for row in db.execute(ask, (chat_id,))]


def unread(db: Connection, chat_id: int, user_id: int) -> int:
    """How many messages of others a member has not read."""
    ask = """SELECT count(*) FROM messages JOIN members USING (chat_id)
        WHERE chat_id = ? AND user_id = ? AND messages.id > read_to AND sender_id != user_id AND text IS NOT NULL"""
    count: int = db.execute(ask, (chat_id, user_id)).fetchone()[0]
    return count


def tell_unread(db: Connection, chat_id: int, user_id: int) -> None:
    """Tell a member, in all windows, how many there are now."""
    store.notification(db, user_id, "unread", {"chat_id": chat_id, "unread": unread(db, chat_id, user_id)})


def view(row: Row) -> dict[str, Any]:
    """A message with the names that it has on its way through notify."""
    return {
        "message_id": row["id"],
        "sender_id": row["sender_id"],
        "content": row["text"] or "",
        "timestamp": row["sent"],
        "edited": row["edited"],
        "deleted": row["text"] is None,
    }


def page(db: Connection, chat_id: int, before: int) -> dict[str, Any]:
    """The last messages before one, oldest first, and whether there are more."""
    ask = "SELECT * FROM messages WHERE chat_id = ? AND id < ? ORDER BY id DESC LIMIT ?"
    rows = db.execute(ask, (chat_id, before, PAGE + 1)).fetchall()
    return {"messages": [view(row) for row in reversed(rows[:PAGE])], "more": len(rows) > PAGE}


def position(chat_id: int) -> dict[str, Any] | None:
    """Where the chat stands in notify; None where that cannot be told now."""
    subject = urlencode({"subject": f"workspace.{WORKSPACE}.chat.{chat_id}.messages"})
    asked = Request(f"{NOTIFY_API}/v1/position?{subject}", headers={"Authorization": f"Bearer {API_KEY}"})
    try:
        with urlopen(asked, timeout=2) as answer:
            told = json.load(answer)
    except (OSError, NoAnswer, ValueError):
        return None
    return {"epoch": told["epoch"], "seq": told["seq"]}


@routes.get("")
def chats(me: Me) -> list[dict[str, Any]]:
    """The user's chats, with how much is unread in each."""
    ask = "SELECT id, title FROM chats JOIN members ON chat_id = id WHERE user_id = ? ORDER BY id"
    with transaction(write=False) as db:
        return [
            {**row, "unread": unread(db, row["id"], me.id), "members": people(db, row["id"])}
            for row in map(dict, db.execute(ask, (me.id,)))
        ]


@routes.get("/{chat_id}")
def state(chat_id: Id, me: Me) -> dict[str, Any]:
    """A chat as it is now. The position is asked for first: what the state may lack comes after it."""
    at = position(chat_id)
    with transaction(write=False) as db:
        chat = must_see(db, chat_id, me)
        names = (
            "SELECT DISTINCT u.id, u.name FROM users u JOIN messages m ON u.id = sender_id WHERE chat_id = ?"
        )
        return {
            "id": chat_id,
            "title": chat["title"],
            "owner_id": chat["owner_id"],
            "position": at,
            "members": people(db, chat_id),
            "senders": [dict(row) for row in db.execute(names, (chat_id,))],
            **page(db, chat_id, MOST),
        }


@routes.get("/{chat_id}/messages")
def earlier(chat_id: Id, before: Annotated[int, Query(ge=1, lt=MOST)], me: Me) -> dict[str, Any]:
    """What was said before a message."""
    with transaction(write=False) as db:
        must_see(db, chat_id, me)
        return page(db, chat_id, before)


@routes.put("/{chat_id}/read", status_code=204)
def read(chat_id: Id, upto: Read, me: Me) -> None:
    """The user has read so far."""
    with transaction() as db:
        chat = must_see(db, chat_id, me)
        newest = "SELECT coalesce(max(id), 0) FROM messages WHERE chat_id = ? AND id <= ?"
        [to] = db.execute(newest, (chat_id, upto.to)).fetchone()
        if to > chat["read_to"]:
            set_to = "UPDATE members SET read_to = ? WHERE chat_id = ? AND user_id = ?"
            db.execute(set_to, (to, chat_id, me.id))
            tell_unread(db, chat_id, me.id)


# --- messages


def tell_others_unread(db: Connection, chat_id: int, sender_id: int) -> None:
    """Tell each of the others: a row for each member, which is for chats of people, not for audiences."""
    for member in people(db, chat_id):
        if member["id"] != sender_id:
            tell_unread(db, chat_id, member["id"])


@routes.post("/{chat_id}/messages", status_code=201)
def post(chat_id: Id, new: New, me: Me) -> dict[str, Any]:
    """Say something: stored, and in the outbox, in one transaction."""
    add = """INSERT INTO messages (chat_id, sender_id, text, sent, key) VALUES (?, ?, ?, ?, ?)
        ON CONFLICT DO NOTHING RETURNING *"""
    with transaction() as db:
        must_see(db, chat_id, me)
        row = db.execute(add, (chat_id, me.id, new.text, int(time.time()), new.key)).fetchone()
        if row is not None:
            store.message(db, chat_id, me.id, row["id"], new.text)
            tell_others_unread(db, chat_id, me.id)
        else:
            again = "SELECT * FROM messages WHERE chat_id = ? AND sender_id = ? AND key = ?"
            row = db.execute(again, (chat_id, me.id, new.key)).fetchone()
    return view(row)


def change(chat_id: int, message_id: int, me: Person, text: str | None) -> dict[str, Any]:
    """Edit a message of one's own, or with None delete it."""
    set_text = """UPDATE messages SET text = ?, edited = edited + 1 WHERE id = ? AND chat_id = ? AND sender_id = ? AND text IS NOT NULL
        RETURNING *"""
    with transaction() as db:
        must_see(db, chat_id, me)
        row = db.execute(set_text, (text, message_id, chat_id, me.id)).fetchone()
        if row is None:
            raise HTTPException(404, "no such message of yours")
        now = view(row)
        store.event(db, chat_id, me.id, "deleted" if text is None else "edited", now, refers_to=message_id)
        if text is None:
            tell_others_unread(db, chat_id, me.id)
    return now


@routes.put("/{chat_id}/messages/{message_id}")
def edit(chat_id: Id, message_id: Id, now: Edit, me: Me) -> dict[str, Any]:
    """Say it in other words."""
    return change(chat_id, message_id, me, now.text)


@routes.delete("/{chat_id}/messages/{message_id}")
def delete(chat_id: Id, message_id: Id, me: Me) -> dict[str, Any]:
    """Take it back."""
    return change(chat_id, message_id, me, None)


# --- members


@routes.post("/{chat_id}/members", status_code=204)
def add(chat_id: Id, named: Named, me: Me) -> None:
    """Let somebody in, who then finds what was said before, and all of it read."""
    let_in = """INSERT INTO members (chat_id, user_id, read_to)
        VALUES (?1, ?2, (SELECT coalesce(max(id), 0) FROM messages WHERE chat_id = ?1)) ON CONFLICT DO NOTHING"""
    with transaction() as db:
        must_see(db, chat_id, me)
        user = db.execute("SELECT id FROM users WHERE name = ?", (named.name,)).fetchone()
        if user is None:
            raise HTTPException(422, f"nobody is called {named.name}")
        if db.execute(let_in, (chat_id, user["id"])).rowcount:
            tell_members(db, chat_id, me, user["id"])


@routes.delete("/{chat_id}/members/{user_id}", status_code=204)
def remove(chat_id: Id, user_id: Id, me: Me) -> None:
    """Leave, or as its owner send somebody away, who hears no more of it as soon as notify is told."""
    with transaction() as db:
        chat = must_see(db, chat_id, me)
        if user_id != me.id and me.id != chat["owner_id"]:
            raise HTTPException(403, "only the owner of a chat removes others from it")
        if db.execute("DELETE FROM members WHERE chat_id = ? AND user_id = ?", (chat_id, user_id)).rowcount:
            # In this order: from now on authorize says no, and what is told of the chat after this is not heard.
            store.unsubscribe(db, chat_id, user_id)
            tell_members(db, chat_id, me, user_id)


def tell_members(db: Connection, chat_id: int, me: Person, user_id: int) -> None:
    """Tell a chat who is in it, and a user that it is about them."""
    store.event(db, chat_id, me.id, "members", {"members": people(db, chat_id)})
    store.notification(db, user_id, "chats", {"chat_id": chat_id})
