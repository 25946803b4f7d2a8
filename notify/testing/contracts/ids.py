"""Every suite runs with integers as ids and, with :class:`TextIds` as its first base class, with text."""

from __future__ import annotations

from collections.abc import Callable

from notify import topics
from notify.ids import Id
from notify.topics import Topic


class IntegerIds:
    """Creates the topics of a suite."""

    #: returns the id for a number
    id_of: Callable[[int], Id] = staticmethod(lambda number: number)

    def chat(self, workspace: int, chat: int) -> Topic:
        """A chat's topic."""
        return topics.chat(self.id_of(workspace), self.id_of(chat))

    def user(self, workspace: int, user: int) -> Topic:
        """A user's topic."""
        return topics.user(self.id_of(workspace), self.id_of(user))


class TextIds(IntegerIds):
    """The same with text as ids: ``class Tests(TextIds, YourBrokerTests)``."""

    id_of = staticmethod(lambda number: f"id_{number}-x")
