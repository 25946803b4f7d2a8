"""Presence over the workers of one machine: each worker reports changes, and the first process counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from notify.identity import Presence, by_user
from notify.ids import Id
from notify.interfaces import IConnection, IPlaces, IRegistry
from notify.topics import Topic
from notify.workers.frames import Changed, Members, Present, Room, Users, Watch, Yes
from notify.workers.link import Link

#: the number of connections that each user has in each topic
_Counts = dict[Topic, dict[Id, int]]


class _Local:
    """Takes the members of this process from ``local``, a registry that knows of no other process."""

    def __init__(self, local: IRegistry) -> None:
        self._local = local

    def join(self, connection: IConnection, topic: Topic) -> bool:
        """See :class:`~notify.interfaces.IRegistry`; the same holds for the methods below."""
        return self._local.join(connection, topic)

    def leave(self, connection: IConnection, topic: Topic) -> bool:
        """See :class:`~notify.interfaces.IRegistry`."""
        return self._local.leave(connection, topic)

    def forget(self, connection: IConnection) -> list[Topic]:
        """See :class:`~notify.interfaces.IRegistry`."""
        return self._local.forget(connection)

    def members(self, topic: Topic) -> Collection[IConnection]:
        """See :class:`~notify.interfaces.IRegistry`."""
        return self._local.members(topic)

    def topics(self, connection: IConnection) -> Collection[Topic]:
        """See :class:`~notify.interfaces.IRegistry`."""
        return self._local.topics(connection)


@implementer(IRegistry)
class SharedRegistry(_Local):
    """The first process's end, which is also its registry: it counts the connections of all workers and has none itself."""

    def __init__(self, local: IRegistry) -> None:
        super().__init__(local)
        self._workers: dict[Link, _Counts] = {}
        #: the links of the workers that watch a topic; None: this process watches it
        self._watched: dict[Topic, dict[Link | None, None]] = {}
        self._changed: Callable[[Topic], None] = lambda topic: None

    def serve(self, link: Link) -> None:
        """Accept this worker's reports and questions from now on."""
        self._workers[link] = {}
        link.answer(
            Present, lambda asked: link.writable().addCallback(lambda _: Users(self._present(asked.topic)))
        )
        link.answer(Room, lambda asked: Yes(self._room(link, asked.topic, asked.most)))
        link.hear(Members, lambda said: self._count(link, said))
        link.hear(Watch, lambda said: self._watch(link, said.topic, said.on))

    def drop(self, link: Link) -> None:
        """A worker is gone, with all of its connections."""
        counts = self._workers.pop(link, {})
        for topic in list(self._watched):
            self._watch(link, topic, False)
        for topic in counts:
            self._tell(topic)

    def start(self, changed: Callable[[Topic], None]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IRegistry`."""
        self._changed = changed
        return succeed(None)

    def presence(self, topic: Topic) -> Deferred[list[Presence]]:
        """See :class:`~notify.interfaces.IRegistry`."""
        return succeed(self._present(topic))

    def watch(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.IRegistry`."""
        self._watch(None, topic, True)

    def unwatch(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.IRegistry`."""
        self._watch(None, topic, False)

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IRegistry`."""
        return succeed(None)

    def _present(self, topic: Topic) -> list[Presence]:
        users: Counter[Id] = Counter()
        for counts in self._workers.values():
            users.update(counts.get(topic, {}))
        return by_user(Presence(user, connections) for user, connections in users.items())

    def _room(self, link: Link, topic: Topic, most: int) -> bool:
        if sum(one.connections for one in self._present(topic)) >= most:
            return False
        # Counted until the worker reports the outcome, since others may ask meanwhile.
        users = self._workers[link].setdefault(topic, {})
        users[topic.id] = users.get(topic.id, 0) + 1
        return True

    def _count(self, link: Link, said: Members) -> None:
        counts = self._workers[link]
        for topic, user, count in said.changes:
            users = counts.setdefault(topic, {})
            if count:
                users[user] = count
            else:
                users.pop(user, None)
                if not users:
                    del counts[topic]
        for topic in dict.fromkeys(topic for topic, _, _ in said.changes):
            self._tell(topic)

    def _watch(self, link: Link | None, topic: Topic, on: bool) -> None:
        if on:
            self._watched.setdefault(topic, {})[link] = None
        elif topic in self._watched:
            watching = self._watched[topic]
            watching.pop(link, None)
            if not watching:
                del self._watched[topic]

    def _tell(self, topic: Topic) -> None:
        for link in list(self._watched.get(topic, {})):
            if link is None:
                self._changed(topic)
            else:
                link.say(Changed(topic))


@implementer(IRegistry, IPlaces)
class LinkedRegistry(_Local):
    """The worker's end. See :class:`~notify.interfaces.IRegistry`. ``soon`` calls at the end of the reactor's turn."""

    def __init__(self, local: IRegistry, link: Link, soon: Callable[[Callable[[], None]], object]) -> None:
        super().__init__(local)
        self._link = link
        self._soon = soon
        self._counts: _Counts = {}
        #: how many connections of each user are waiting for an answer about the limit
        self._asking: Counter[Topic] = Counter()
        self._due: dict[tuple[Topic, Id], None] = {}
        self._watched: set[Topic] = set()
        self._changed: Callable[[Topic], None] = lambda topic: None

    def start(self, changed: Callable[[Topic], None]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IRegistry`."""
        self._changed = changed
        self._link.hear(Changed, self._has_changed)
        return succeed(None)

    def join(self, connection: IConnection, topic: Topic) -> bool:
        """See :class:`~notify.interfaces.IRegistry`."""
        if connection not in self._local.members(topic):
            self._count(connection, topic, 1)
        return self._local.join(connection, topic)

    def leave(self, connection: IConnection, topic: Topic) -> bool:
        """See :class:`~notify.interfaces.IRegistry`."""
        if connection in self._local.members(topic):
            self._count(connection, topic, -1)
        return self._local.leave(connection, topic)

    def forget(self, connection: IConnection) -> list[Topic]:
        """See :class:`~notify.interfaces.IRegistry`."""
        for topic in self._local.topics(connection):
            self._count(connection, topic, -1)
        return self._local.forget(connection)

    def presence(self, topic: Topic) -> Deferred[list[Presence]]:
        """See :class:`~notify.interfaces.IRegistry`."""
        self._say()  # include what has just changed here
        return self._link.ask(Present(topic)).addCallback(lambda answer: answer.users)

    def room(self, topic: Topic, most: int) -> Deferred[bool]:
        """See :class:`~notify.interfaces.IPlaces`."""
        self._say()  # before the question, which the first process counts itself
        self._asking[topic] += 1

        def over(answer: Yes | Failure) -> Yes | Failure:
            # The asker now joins or does not; either way the next report corrects the first process's count.
            self._asking -= Counter((topic,))
            self._mark(topic, topic.id)
            return answer

        asked = self._link.ask(Room(topic, most)).addBoth(over)
        return asked.addCallback(lambda answer: answer.yes)

    def watch(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.IRegistry`."""
        self._watched.add(topic)
        self._link.say(Watch(topic, True))

    def unwatch(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.IRegistry`."""
        self._watched.discard(topic)
        self._link.say(Watch(topic, False))

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IRegistry`."""
        return succeed(None)

    def _count(self, connection: IConnection, topic: Topic, more: int) -> None:
        users = self._counts.setdefault(topic, {})
        user = connection.identity.user_id
        users[user] = users.get(user, 0) + more
        if not users[user]:
            del users[user]
            if not users:
                del self._counts[topic]
        self._mark(topic, user)

    def _mark(self, topic: Topic, user: Id) -> None:
        if not self._due:
            self._soon(self._say)
        self._due[topic, user] = None

    def _say(self) -> None:
        if not self._due:
            return
        due, self._due = self._due, {}
        changes = []
        for topic, user in due:
            asking = self._asking[topic] if topic.kind == "user" else 0
            changes.append((topic, user, self._counts.get(topic, {}).get(user, 0) + asking))
        self._link.say(Members(changes))

    def _has_changed(self, said: Changed) -> None:
        if said.topic in self._watched:
            self._changed(said.topic)


class CountedRegistry(LinkedRegistry):
    """The worker's end if ``local`` itself knows who is present in other processes, for example over NATS.

    The first process then only counts connections of users, whose limit holds for the whole server.
    """

    def start(self, changed: Callable[[Topic], None]) -> Deferred[None]:
        """See :class:`~notify.interfaces.IRegistry`."""
        return self._local.start(changed)

    def presence(self, topic: Topic) -> Deferred[list[Presence]]:
        """See :class:`~notify.interfaces.IRegistry`."""
        return self._local.presence(topic)

    def watch(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.IRegistry`."""
        self._local.watch(topic)

    def unwatch(self, topic: Topic) -> None:
        """See :class:`~notify.interfaces.IRegistry`."""
        self._local.unwatch(topic)

    def stop(self) -> Deferred[None]:
        """See :class:`~notify.interfaces.IRegistry`."""
        return self._local.stop()

    def _count(self, connection: IConnection, topic: Topic, more: int) -> None:
        if topic.kind == "user":
            super()._count(connection, topic, more)
