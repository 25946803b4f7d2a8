"""Power fails for everything at once: the NATS server's disk goes back to its last sync, and notify dies with it.

No running process remembers what was acknowledged; only the node's state directory does. Clients stay away until so
many new messages have been published that their old positions look valid again.
"""

from __future__ import annotations

import signal
from typing import Any

from twisted.internet.threads import deferToThread

from tests.faults import disks
from tests.faults.harness import ROWS, FaultCase, show
from tests.support.natsd import NatsServer, pause
from tests.support.process import Server

CHATS = (1, 2, 3)
#: number of messages that are lost; more than that are published afterwards
LOST = 60


class PowerOfAll(FaultCase):
    timeout = 120

    def publish(self, count: int) -> None:
        """Publish through the node's HTTP API: its own broker is the only one."""
        for _ in range(count):
            number = len(self.acknowledged) + 1
            chat = CHATS[number % len(CHATS)]
            status, answer = self.node.publish(chat, "hello", number)
            self.assertEqual(status, 200, answer)
            self.acknowledged.append((chat, number, {"epoch": answer["epoch"], "seq": answer["seq"]}))

    def resume(self, chat: int, since: dict[str, Any], last: int) -> list[int] | None:
        """What a client at a position gets, up to the message ``last``; ``None`` if it is told of the loss."""
        with self.node.client() as client:
            client.send(type="subscribe", chat_id=chat, since=since)
            answer = client.receive()
            self.assertEqual(answer["type"], "subscribed", answer)
            if not answer["recovered"]:
                return None
            numbers = []
            while answer["seq"] > since["seq"] and last not in numbers:
                numbers.append(client.receive()["message_id"])
            return numbers

    def resume_all(self) -> tuple[int, int, list[str]]:
        """Resume from every acknowledged position: the numbers of whole and told ones, and the wrong ones."""
        whole, told, wrong = 0, 0, []
        for chat, number, position in self.acknowledged:
            later = [other for at, other, _ in self.acknowledged if at == chat and other > number]
            got = self.resume(chat, position, later[-1] if later else number)
            if got is None:
                told += 1
            elif got == later:
                whole += 1
            else:
                missing = sorted(set(later) - set(got))
                wrong.append(f"chat {chat} after {number}: recovered, without {missing[:5]} ({len(missing)})")
        return whole, told, wrong

    async def test_the_server_goes_back_and_notify_dies_with_it(self) -> None:
        self.acknowledged: list[tuple[int, int, dict[str, Any]]] = []
        nats = NatsServer().start()
        self.addCleanup(nats.remove)
        await nats.up()
        broker = f'[broker]\nplugin = "jetstream"\n[broker.jetstream]\nservers = ["{nats.url}"]\n'
        self.node = Server(
            f'{broker}canary_interval = "500ms"\ncheck_interval = "500ms"\n[server]\nnode = "node-1"\n'
        )
        self.addCleanup(self.node.__exit__, None, None, None)
        state = self.node.folder / "state"
        state.mkdir()
        # as systemd does for StateDirectory=
        self.node.environ["STATE_DIRECTORY"] = str(state)
        await deferToThread(self.node.start)
        await deferToThread(self.publish, LOST)
        await pause(1.0)
        synced = disks.remember(nats)
        await deferToThread(self.publish, LOST)
        await pause(2.0)  # the node writes down what it has seen every check_interval

        self.node.signal(signal.SIGKILL)
        nats.kill(signal.SIGKILL)
        await deferToThread(self.node.process.wait)
        disks.put_back(nats, synced)
        await nats.start().up()
        await deferToThread(self.node.start)
        before = len(self.acknowledged)
        await deferToThread(self.publish, 2 * LOST)
        whole, told, wrong = await deferToThread(self.resume_all)
        published = len(self.acknowledged)
        row = ("power loss of all, one server", published, published, 0, 0, published - LOST, "-", len(wrong))
        ROWS.append((*row, told, "-", "-", "-", "-"))
        show()
        self.assertEqual([], wrong[:5], f"{len(wrong)} of {published}")
        self.assertGreaterEqual(told, before, "nothing of the old history is whole any more")
        self.assertGreater(whole, LOST, "the new one is")
