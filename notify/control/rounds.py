"""One request to several nodes, and their answers, without I/O."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger
from twisted.python.failure import Failure

from notify.errors import Unavailable
from notify.interfaces import Gathered


def failed(log: Logger, failure: Failure, command: str) -> None:
    """Log that this node could not carry out a command. The command's name may come from anybody."""
    name = ascii(command)
    if isinstance(failure.value, Unavailable):
        log.warn("{command} is not done here: {reason}", command=name, reason=str(failure.value))
    else:
        log.failure("{command} failed here", failure, command=name)


class Round:
    """Collects answers until it is settled and all nodes in ``waiting`` (ids with their nodes' names) have answered, or it is finished.

    ``done`` is called once, with the answers. ``closing`` is called before that.
    """

    def __init__(self, waiting: dict[str, str], done: Callable[[Gathered], object]) -> None:
        self.closing: list[Callable[[], object]] = []
        self._waiting = dict(waiting)
        self._answers: dict[str, tuple[str, bytes]] = {}
        self._missing: list[str] = []
        self._settled = False
        self._detail = ""
        self._done: Callable[[Gathered], object] | None = done

    def heard(self, id: str, node: str, answer: bytes | None) -> None:
        """A node answered; None: it could not carry out the command. Answers of nodes that were unknown before are accepted as well."""
        if id in self._answers or self._done is None:
            return
        self._waiting.pop(id, None)
        if answer is None:
            self._missing.append(node)
        else:
            self._answers[id] = node, answer
        self._look()

    def left(self, id: str) -> None:
        """A node said that it leaves: it has no clients any more, so it is not missing."""
        self._waiting.pop(id, None)
        self._look()

    def settle(self) -> None:
        """All running nodes are known by now."""
        self._settled = True
        self._look()

    def only(self, id: str, detail: str) -> None:
        """No node but this one can be reached; ``detail`` says why."""
        self._detail = detail
        self._missing += [node for other, node in self._waiting.items() if other != id]
        self._waiting = {other: node for other, node in self._waiting.items() if other == id}
        self.settle()

    def finish(self, detail: str = "") -> None:
        """Wait for no further answers. Has no effect if the round is over."""
        self._detail = detail or self._detail
        self._missing += self._waiting.values()
        self._waiting = {}
        self.settle()

    def _look(self) -> None:
        if self._settled and not self._waiting and self._done is not None:
            done, self._done = self._done, None
            for close in self.closing:
                close()
            done(Gathered(sorted(self._answers.values()), sorted(self._missing), self._detail))
