"""A topic is one stream of messages inside one workspace: a chat, or a user's notifications.

Its name on the broker is a NATS subject (docs/protocol.md, section 2)::

    workspace.{workspace_id}.chat.{chat_id}.messages
    workspace.{workspace_id}.user.{user_id}.notifications
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

Kind = Literal["chat", "user"]

_SUFFIX: dict[str, str] = {"chat": "messages", "user": "notifications"}
_ID = r"(0|-?[1-9][0-9]{0,18})"
_SUBJECT = re.compile(rf"workspace\.{_ID}\.(?:chat\.{_ID}\.messages|user\.{_ID}\.notifications)", re.ASCII)


class Topic(NamedTuple):
    """One chat's messages, or one user's notifications. A topic always carries its workspace (the tenant).

    All ids are signed 64-bit integers.
    """

    workspace_id: int
    kind: Kind
    id: int

    @property
    def subject(self) -> str:
        """The NATS subject of this topic."""
        return f"workspace.{self.workspace_id}.{self.kind}.{self.id}.{_SUFFIX[self.kind]}"

    @classmethod
    @lru_cache(maxsize=16_384)  # a busy chat's subject comes with each of its messages
    def from_subject(cls, subject: str) -> Topic:
        """Parse a subject; its ids are canonical decimals (no sign but ``-``, no leading zero).

        Raises ``ValueError`` for anything that is not exactly a subject of ours.
        """
        match = _SUBJECT.fullmatch(subject)
        if match is None:
            raise ValueError(
                "not a subject of the form workspace.N.chat.N.messages or workspace.N.user.N.notifications"
            )
        workspace, chat, user = match.groups()
        topic = cls(int(workspace), "chat" if user is None else "user", int(chat if user is None else user))
        if not (INT64_MIN <= topic.workspace_id <= INT64_MAX and INT64_MIN <= topic.id <= INT64_MAX):
            raise ValueError("ids in a subject are signed 64-bit integers")
        return topic


def chat(workspace_id: int, chat_id: int) -> Topic:
    """The topic of a chat's messages."""
    return Topic(workspace_id, "chat", chat_id)


def user(workspace_id: int, user_id: int) -> Topic:
    """The topic of a user's notifications."""
    return Topic(workspace_id, "user", user_id)
