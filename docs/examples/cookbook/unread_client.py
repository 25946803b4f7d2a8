"""Unread counts, the client's half: what a badge shows."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from notify.client import AsyncioClient, ChatMessage, Loss

State = dict[str, int]


log = logging.getLogger("unread")

#: seconds until a backend that is away is asked again
AGAIN = 1.0


class Unread:
    """``unread[chat_id]`` is how many messages of others a user has not read.

    ``ask(chat_id)`` has the backend say how a chat stands, and raises OSError where that is away; ``changed(chat_id, count)`` is
    called with each new count.
    """

    def __init__(
        self,
        user_id: int,
        ask: Callable[[int], Awaitable[State]],
        changed: Callable[[int, int], object] = lambda chat_id, count: None,
    ) -> None:
        self._user_id, self._ask, self._changed = user_id, ask, changed
        self._states: dict[int, State] = {}
        #: of each chat, the messages of others that came after that state
        self._since: dict[int, list[int]] = {}

    def __getitem__(self, chat_id: int) -> int:
        known = self._states.get(chat_id)
        return 0 if known is None else known["unread"] + len(self._since[chat_id])

    async def chat(self, client: AsyncioClient, chat_id: int) -> None:
        """Count the messages of a chat, from how it stands now: also after a loss, which loads it again."""
        async for message in client.chat(chat_id, load=lambda position: self.load(chat_id)):
            self.count(chat_id, message)

    async def notifications(self, client: AsyncioClient) -> None:
        """Hear what the user's other devices have read."""
        async for notification in client.notifications:
            if notification.kind == "read":
                self.apply(notification.data)

    async def lost(self, loss: Loss) -> None:
        """For the client's ``on_lost``: notifications are gone, and with them what was read meanwhile."""
        for chat_id in list(self._states):
            await self.load(chat_id)

    async def load(self, chat_id: int) -> None:
        """Ask the backend, until it answers."""
        while True:
            try:
                state = await self._ask(chat_id)
            except OSError as error:
                log.warning("how chat %s stands is asked again: %s", chat_id, error)
                await asyncio.sleep(AGAIN)
            else:
                return self.apply(state)

    def apply(self, state: State) -> None:
        """Take how a chat stands, from whomever: the answer to a question or to a mark, or a notification."""
        chat_id = state["chat_id"]
        known = self._states.get(chat_id, state)
        if (state["last_read"], state["newest"]) >= (
            known["last_read"],
            known["newest"],
        ):  # else it is an old one
            since = self._since.get(chat_id, [])
            self._states[chat_id] = state
            self._since[chat_id] = [message_id for message_id in since if message_id > state["newest"]]
            self._changed(chat_id, self[chat_id])

    def count(self, chat_id: int, message: ChatMessage) -> None:
        """Take a message of a chat."""
        known: Any = self._states[chat_id]
        if message.message_id > known["newest"] and message.sender_id != self._user_id:
            self._since[chat_id].append(message.message_id)
            self._changed(chat_id, self[chat_id])
