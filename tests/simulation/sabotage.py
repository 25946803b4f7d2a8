"""Breaks one line of notify after another in a copy of the tree; the simulation must catch each within a minute.

    python -m tests.simulation.sabotage              all of them
    python -m tests.simulation.sabotage dispatcher   those in files whose path contains this
    python -m tests.simulation.sabotage --sample 4   a sample, a different one each day

Each row of the table says which line is broken, and how. ``test_sabotage.py`` checks the table against the tree:
each old text must occur exactly once. If you change a line of code that the table quotes, update the table.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from notify.testing.simulation import play
from tests.simulation.run import life
from tests.support.breakage import choose, put_in
from tests.support.programs import ROOT

#: seconds in which the simulation must catch a breakage
MINUTE = 60.0
#: the first seed of most breakages: any would do, but a fixed one makes results reproducible
FIRST = 1


class Breakage(NamedTuple):
    """``old`` becomes ``new`` in a file below notify/; ``why`` says what that does. Lives begin with seed ``first``.

    A minute is short: for a breakage that shows in only a few lives, ``first`` is the seed of one in which it
    shows.
    """

    path: str
    old: str
    new: str
    why: str
    first: int = FIRST

    @property
    def name(self) -> str:
        """The breakage as reports name it."""
        return f"{self.path}: {self.why}"


TABLE = (
    Breakage('core/dispatcher.py', '        self._fan_out(members, outgoing)\n',
             '        self._fan_out(members[:-1] if len(members) == 3 else members, outgoing)\n', 'the last of three members is not written to'),
    Breakage('core/dispatcher.py', '            connection.close(4004, "history lost")\n',
             '            pass\n', 'a lost topic is not told to its members'),
    Breakage('core/dispatcher.py', '            feed.sent.add(message.event, message.position.seq)\n',
             '            feed.sent.add(message.event, message.position.seq + 1)\n', 'prev names a number that was not sent'),
    Breakage('core/feed.py', '        if encoding.events or not isinstance(message.event, ChatEvent):\n',
             '        if True:\n', 'events are sent to those who did not ask for them'),
    Breakage('core/dispatcher.py', '            members = [one for one in members if one not in feed.waiting]\n',
             '            pass\n', 'who is on the way in is written to'),
    Breakage('core/dispatcher.py', '        feed.tail.add(messages, self._live.now.limits.replay)\n',
             '        feed.tail.add(messages[-1:], self._live.now.limits.replay)\n', 'of messages that come together the tail keeps one'),
    Breakage('core/feed.py', '        if since is None or since.epoch != self.epoch or since.seq < 0:\n',
             '        if since is None or since.seq < 0:\n', 'a position of another history is looked up in this one'),
    Breakage('core/feed.py', '        if seq >= self.tail.start and (seq > 0 or self._begun):\n',
             '        if True:\n', 'a tail that does not reach back answers'),
    Breakage('core/feed.py', 'read.after, [message for message in messages if message.position.seq <= start]',
             'read.after, messages', "what a read brought beyond the tail's beginning is kept twice", 29),
    Breakage('core/feed.py', '        self.tail.start = self.last\n',
             '        self.tail.start = 0\n', 'a tail says that it reaches back to the beginning of the topic'),
    Breakage('core/feed.py', '        if reached <= last:\n',
             '        if True:\n', 'who has seen more than was delivered here is sent it again', 69),
    Breakage('core/recent.py', '            if message.position.seq <= seq:\n',
             '            if message.position.seq < seq:\n', 'a tail gives the message at the position, too'),
    Breakage('core/recent.py', '            self.start = self.gone = message.position.seq\n',
             '            self.gone = message.position.seq\n', 'a tail says that it reaches back to what it let go'),
    Breakage('core/session.py', '        self._busy = False\n        self._work()\n',
             '        self._busy = False\n', 'frames behind one that waited are not handled'),
    Breakage('core/session.py', '        self.connection.write(encoding.pack([body, *(bodies or ())]))\n',
             '        self.connection.write(encoding.pack([*(bodies or ()), body]))\n', 'an answer comes behind what it announces'),
    Breakage('core/session.py', '            chats.forget(self)\n',
             '            pass\n', 'a connection that is gone stays in its chats'),
    Breakage('brokers/jetstream/publisher.py', 'return f"{self._random.getrandbits(128):032x}"',
             'return f"{self._random.getrandbits(4):032x}"', 'ids of messages repeat'),
    Breakage('brokers/jetstream/publisher.py', '        behind.append(one)\n',
             '        behind.appendleft(one)\n', "a topic's messages are turned round"),
    Breakage('brokers/jetstream/flight.py', '            fields["Nats-Expected-Last-Msg-Id"] = messages[number - 1].id\n',
             '            pass\n', 'what goes out together does not depend on what is before it', 845),
    Breakage('brokers/jetstream/flight.py', '    before = after(topic, behind)\n',
             '    before = after(topic, behind)\n    one.fields["Nats-Msg-Id"] += "x" * one.open\n', 'a repeated publish has another id'),
    Breakage('brokers/jetstream/publisher.py', 'start=ack.seq - ack.count + 1',
             'start=ack.seq - ack.count', 'the numbers of a batch begin one too early'),
    Breakage('brokers/jetstream/publisher.py', '        if self._behind[topic]:\n            self._waiting.add(topic.workspace_id, topic)\n',
             '        if self._behind[topic]:\n            self._behind[topic].popleft()\n            self._waiting.add(topic.workspace_id, topic)\n', 'the next message of a topic is thrown away'),
    Breakage('brokers/jetstream/publisher.py', '        if ack.error is None:\n            self.stored(ack.seq, one.id)\n',
             '        if ack.error is None or ack.error.code == 503:\n            self.stored(ack.seq, one.id)\n', 'a refusal counts as an acknowledgement', 207),
    Breakage('brokers/jetstream/publisher.py', '                    self._cancel(flight)\n                    self._attempt(flight)\n',
             '                    self._cancel(flight)\n', 'what was on its way is not sent again by a new connection'),
    Breakage('brokers/jetstream/atomic.py', 'start=last.seq - last.count + 1',
             'start=last.seq - last.count', 'the numbers of a list as one begin one too early'),
    Breakage('http/publish.py', '(self._as_one if atomic == "true" else self.together)',
             '(self.together)', 'the messages of a list as one stand each for itself'),
    Breakage('brokers/jetstream/atomic.py', '            self._publisher.release(turn)\n',
             '            pass\n', 'a list as one keeps its topics for good'),
    Breakage('brokers/jetstream/atomic.py', '                    one.known[sent.id] = ack.seq, True\n',
             '                    one.known[sent.id] = ack.seq + 1, True\n', 'what is known of a list as one is said to be elsewhere', 2001091),
    Breakage('core/pages.py', '        messages = older[1:]\n',
             '        messages = older[1:-1] or older[1:]\n', 'a page out of memory lacks its last message'),
    Breakage('brokers/jetstream/pages.py', '                page.append(one)\n',
             '                page.append(one) if one.seq % 3 or not page else None\n', 'a page lacks messages from its middle'),
    Breakage('brokers/jetstream/pages.py', 'reach if before is None else min(reach, before - 1)', 'reach',
             'a page before a position goes on behind it'),
    Breakage('brokers/jetstream/reader.py', '            if state.first_seq > known + 1:\n',
             '            if False:\n', 'what has aged out behind the position does not matter'),
    Breakage('brokers/jetstream/reader.py', '        if state.first_seq > seq + 1 or self.holes.between(seq):\n',
             '        if False:\n', 'a position behind which messages aged out is recovered'),
    Breakage('brokers/jetstream/tail.py', '        return last == state.seq or (last < 0 and not state.doubt)\n',
             '        return True\n', 'what comes is taken for the next one'),
    Breakage('brokers/jetstream/tail.py', '                if one.last != state.seq and (one.last >= 0 or state.doubt or not follows):\n',
             '                if False:\n', 'what was held is let go over a gap', 7568),
    Breakage('brokers/jetstream/tail.py', '        elif not state.busy and seq > position and self._follows_on(state, last) and last:\n',
             '        elif not state.busy and seq >= position and self._follows_on(state, last) and last:\n', 'what was delivered last is delivered again', 831),
    Breakage('brokers/jetstream/tail.py', '                elif seq > state.seq:\n                    behind.append',
             '                elif False:\n                    behind.append', 'a comparison with the stream finds nothing'),
    Breakage('brokers/jetstream/history.py', '        for mark in marks:\n            if mark.seq > state.last_seq:\n',
             '        for mark in ():\n            if mark.seq > state.last_seq:\n', 'what was seen of a stream that went back is not missed', 94),
    Breakage('brokers/jetstream/history.py', '        if len({one.epoch for one in current}) == 1 and not reused and not await self._lacks(state, seen):\n',
             '        if True:\n', 'a stream that went back is taken for the same history', 55),
    Breakage('brokers/jetstream/consumer.py', '        if number != self._next or (self._seq and seq > self._seq + 1):\n',
             '        if False:\n', 'the numbers of deliveries are not looked at', 350),
    Breakage('brokers/jetstream/tail.py', '        for state in self.states.values():\n            state.doubt = True\n',
             '        pass\n', 'a source that missed something is believed', 350),
    Breakage('brokers/jetstream/fair.py', '        self._busy[key] -= 1\n',
             '', 'a tenant is not given its place back'),
    Breakage('brokers/jetstream/fair.py', 'self._busy[key] == self._share - 1:',
             'self._busy[key] == self._share:', 'a tenant that had its share gets no more turns'),
    Breakage('brokers/jetstream/fair.py', '        self.taken -= count\n',
             '', 'a message that is stored keeps its place'),
    Breakage('client/parts/heartbeat.py', '        self._asked, self.due = False, now + self._interval\n\n    def stop',
             '        self._asked, self.due = False, None\n\n    def stop', 'the client never asks whether its connection is alive'),
    Breakage('client/parts/topics.py', '        return NOWHERE if position is None else msgspec.to_builtins(position)\n',
             '        return NOWHERE\n', 'the client comes back without its position in the notifications'),
    Breakage('client/parts/topics.py', 'return "gap" if frame["prev"] > known else "next"',
             'return "gap" if frame["prev"] >= known else "next"', 'the client finds gaps where none are'),
    Breakage('client/parts/topics.py', '        elif not answer.get("recovered"):\n',
             '        elif False:\n', 'the client does not tell a loss, and does not move on'),
    Breakage('client/parts/topics.py', '            frame["since"] = position\n',
             '            pass\n', 'the client comes back without its position'),
    Breakage('client/parts/topics.py', '        self.position, self.progress = Position(frame["epoch"], frame["seq"]), True\n',
             '        self.progress = True\n', "the client's position stays where it was"),
    Breakage('brokers/jetstream/__init__.py', '        self._tail.marks.keep()\n        self._health.compare_soon()\n',
             '        pass\n', 'a new leader is believed to have what the old one had', 2001470),
    Breakage('transport/connection.py', '            self.queued -= size\n',
             '', 'what was sent from a queue still counts'),
    Breakage('transport/connection.py', '        self._queue.append(frame)\n',
             '        self._queue.appendleft(frame)\n', 'what waits for a client is turned round'),
    Breakage('transport/connection.py', '        if connection.queued > self._each():\n',
             '        if connection.queued > 64 * self._each():\n', 'a queue grows beyond its bound', 82),
    Breakage('transport/websocket.py', '                connection.close(4003, "no pong")\n                return\n',
             '                return\n', 'the server keeps connections that are dead'),
)  # fmt: skip


def broken_tree(breakage: Breakage, folder: Path) -> Path:
    """A copy of what the simulation needs, with the breakage."""
    tree = folder / "tree"
    leave = shutil.ignore_patterns("__pycache__", "web", "node_modules")
    shutil.copytree(ROOT / "notify", tree / "notify", ignore=leave)
    (tree / "notify" / "web").mkdir()
    for name in ("simulation", "support"):
        shutil.copytree(ROOT / "tests" / name, tree / "tests" / name, ignore=leave)
    (tree / "tests" / "__init__.py").touch()
    put_in(breakage, tree)
    return tree


def caught(breakage: Breakage, seconds: float = MINUTE) -> tuple[float, str]:
    """How many seconds the simulation took to catch it, and by what; 0 seconds if it did not.

    A life that fails in the same way without the breakage does not count.
    """
    first, began = breakage.first, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sabotage-") as folder:
        tree = broken_tree(breakage, Path(folder))
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        while (left := seconds - (time.monotonic() - began)) > 0:
            options = ["--seconds", str(left), "--first", str(first), "--once"]
            command = [sys.executable, "-m", "tests.simulation.run", *options]
            done = subprocess.run(
                command, cwd=tree, env=environment, capture_output=True, text=True, check=False
            )
            took = time.monotonic() - began
            found = re.search(r"^seed (\d+): (.*)$", done.stdout, re.MULTILINE)
            if "Traceback" in done.stderr:
                return took, done.stderr[-300:]
            if found is None:
                break
            if play(life(int(found[1]))).violation is None:
                return took, found[0]
            first = int(found[1]) + 1
    return 0.0, ""


def verdict(took: float) -> str:
    """The result as reports show it."""
    return f"caught in {took:4.0f} s" if took else "NOT CAUGHT      "


def main(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    chosen = choose(TABLE, "tests.simulation.sabotage", arguments)
    missed = 0
    for one in chosen:
        took, how = caught(one)
        missed += not took
        print(
            f"{verdict(took)}  {one.name}\n    {how[:160]}",
            flush=True,
        )
    print(f"{len(chosen) - missed} of {len(chosen)} breakages were caught")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
