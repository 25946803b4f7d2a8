"""A topic is one stream of messages inside one workspace: a chat, or a user's notifications.

Its name on the broker is a NATS subject (docs/protocol.md, section 2)::

    workspace.{workspace_id}.chat.{chat_id}.messages
    workspace.{workspace_id}.user.{user_id}.notifications
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

from notify import ids
from notify.ids import Id

Kind = Literal["chat", "user"]

_SUFFIX: dict[str, str] = {"chat": "messages", "user": "notifications"}
_ID = f"({ids.TOKEN})"
_SUBJECT = re.compile(rf"workspace\.{_ID}\.(?:chat\.{_ID}\.messages|user\.{_ID}\.notifications)", re.ASCII)


class Topic(NamedTuple):
    """One chat's messages, or one user's notifications. A topic always carries its workspace (the tenant)."""

    workspace_id: Id
    kind: Kind
    id: Id

    @property
    def subject(self) -> str:
        """The NATS subject of this topic."""
        return f"workspace.{self.workspace_id}.{self.kind}.{self.id}.{_SUFFIX[self.kind]}"

    @property
    def signals(self) -> str:
        """The NATS subject of a chat's signals, which no stream keeps (docs/protocol.md, section 2)."""
        return f"workspace.{self.workspace_id}.{self.kind}.{self.id}.signals"

    @classmethod
    @lru_cache(maxsize=16_384)  # a busy chat's subject arrives with each of its messages
    def from_subject(cls, subject: str) -> Topic:
        """Parse a subject; integers in it must be canonical (:func:`notify.ids.parse`).

        Raises ``ValueError`` for anything that is not exactly one of notify's subjects.
        """
        match = _SUBJECT.fullmatch(subject)
        if match is None:
            raise ValueError(
                "not a subject of the form workspace.ID.chat.ID.messages or workspace.ID.user.ID.notifications"
            )
        workspace, chat, user = match.groups()
        return cls(
            ids.parse(workspace),
            "chat" if user is None else "user",
            ids.parse(chat if user is None else user),
        )


def chat(workspace_id: Id, chat_id: Id) -> Topic:
    """The topic of a chat's messages."""
    return Topic(workspace_id, "chat", chat_id)


def user(workspace_id: Id, user_id: Id) -> Topic:
    """The topic of a user's notifications."""
    return Topic(workspace_id, "user", user_id)
