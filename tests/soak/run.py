"""The soak: ``python -m tests.soak.run --seconds 300 --seed 1``. Exits with 1 if a message is lost, doubled or late."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from notify.auth.tokens import issue
from notify.client import AsyncioClient, Loss, Publisher, PublishFailed, Settings, Token
from tests.soak.proxy import ChaosProxy
from tests.support.ports import free_port
from tests.support.programs import ROOT, node_modules, program

SECRET, KEY = "soak-0123456789abcdef0123456789ab", "soak-key-0123456789"
CHATS = (1, 2, 3)
#: lifetime of a token in seconds: some tokens expire, most are refreshed
TOKEN = 15.0
#: timeouts of seconds, so that even a short soak detects some dead connections
SETTINGS = {"pong_timeout": 2.0, "answer_timeout": 4.0, "connect_timeout": 4.0, "backoff_cap": 4.0}
SERVER = {
    "NOTIFY_AUTH__JWT__SECRET": SECRET,
    "NOTIFY_API__KEYS": KEY,
    "NOTIFY_LIMITS__PING_INTERVAL": "2s",
    "NOTIFY_LIMITS__PING_TIMEOUT": "2s",
}


class Ledger:
    """Records who has received what. A stream is one of a client's chats, or its notifications (0)."""

    def __init__(self) -> None:
        self.last: dict[tuple[str, int], int] = {}
        self.ready: set[tuple[str, int]] = set()
        self.faults: list[str] = []
        self.notes: Counter[str] = Counter()
        self.deliveries = 0

    def received(self, client: str, stream: int, number: int) -> None:
        last = self.last.get((client, stream), 0)
        if number != last + 1:
            self.faults.append(f"{client}, stream {stream}: {number} came after {last}")
        self.last[client, stream] = max(last, number)
        self.deliveries += 1

    def behind(self, published: dict[int, int]) -> list[tuple[str, int]]:
        """The streams that have not received everything."""
        return [key for key in self.ready if self.last.get(key, 0) < published.get(key[1], 0)]


async def python_client(url: str, name: str, user: int, ledger: Ledger) -> None:
    """One client of the Python library, until cancelled."""

    def token() -> Token:
        now = time.time()
        return Token(issue(SECRET, user, 1, TOKEN, now), now + TOKEN)

    def lost(loss: Loss) -> None:
        ledger.faults.append(f"{name}: {loss}")

    def state(state: Any) -> None:
        ledger.notes[f"python {state.name}"] += 1

    async def read(stream: Any, number: int) -> None:
        stream.on_lost = lost
        await stream.ready()
        ledger.ready.add((name, number))
        async for message in stream:
            ledger.received(name, number, int(message.content if number else message.data))

    async with AsyncioClient(url, token, settings=Settings(**SETTINGS), on_state=state, queue=64) as client:
        streams = [(client.notifications, 0), *((client.chat(chat), chat) for chat in CHATS)]
        async with asyncio.TaskGroup() as group:
            for stream, number in streams:
                group.create_task(read(stream, number))


async def javascript_clients(url: str, count: int, ledger: Ledger) -> None:
    """``count`` clients of the JavaScript library in one Node process, until cancelled."""
    node_modules()
    process = await asyncio.create_subprocess_exec(
        *(program("node"), str(ROOT / "tests" / "js" / "soak.mjs"), url, str(count), str(TOKEN)),
        *(",".join(map(str, CHATS)), str(SETTINGS).replace("'", '"')),
        env={**os.environ, "NOTIFY_SECRET": SECRET},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            kind, name, *rest = line.decode().split(" ", 2)
            if kind == "message":
                stream, number = rest[0].split()
                ledger.received(name, int(stream), int(number))
            elif kind == "ready":
                ledger.ready.add((name, int(rest[0])))
            elif kind == "state":
                ledger.notes[f"javascript {rest[0].strip()}"] += 1
            else:
                ledger.faults.append(line.decode().strip())
        raise RuntimeError(f"node ended with {await process.wait()}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def publish(url: str, seconds: float, rate: float, random: Random, published: dict[int, int]) -> None:
    """Publish numbered messages to all chats and users, through a proxy. Runs in a thread."""
    with Publisher(url, KEY, timeout=60, try_timeout=3) as publisher:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            chat = random.choice((0, *CHATS))
            number = published.get(chat, 0) + 1
            if chat:
                publisher.chat(1, chat, 1, str(number))
            else:
                publisher.notify(1, USER, "count", number)
            published[chat] = number
            time.sleep(random.expovariate(rate))


USER = 5


async def soak(seconds: float, seed: int, python: int, javascript: int, rate: float) -> bool:
    """Run the soak and print what happened; return whether all went well."""
    ledger, published = Ledger(), dict[int, int]()
    with tempfile.TemporaryDirectory() as folder:
        server, ports = await start_server(Path(folder))
        # The publisher has only one connection, and waits for each answer: with as many faults as the clients have,
        # it would publish little.
        proxies = [
            ChaosProxy(ports[0], Random(seed)),
            ChaosProxy(ports[1], Random(seed + 1), life=15, stall=1),
        ]
        try:
            for proxy in proxies:
                proxy.calm = True
                await proxy.start()
            url, api = f"ws://127.0.0.1:{proxies[0].port}/ws", f"http://127.0.0.1:{proxies[1].port}"
            tasks = [
                asyncio.ensure_future(python_client(url, f"python-{index}", USER, ledger))
                for index in range(python)
            ]
            if javascript:
                tasks.append(asyncio.ensure_future(javascript_clients(url, javascript, ledger)))
            wanted = (python + javascript) * (len(CHATS) + 1)
            await until(lambda: len(ledger.ready) == wanted, tasks, 30, "all are subscribed")
            for proxy in proxies:
                proxy.calm = False
            failures: list[BaseException] = []

            def work() -> None:
                try:
                    publish(api, seconds, rate, Random(seed), published)
                except PublishFailed as error:
                    failures.append(error)

            publishing = threading.Thread(target=work)
            publishing.start()
            await until(lambda: not publishing.is_alive(), tasks, seconds + 120, "all is published")
            for proxy in proxies:
                proxy.calm = True
            ledger.faults += [str(error) for error in failures]
            try:
                await until(lambda: not ledger.behind(published), tasks, 60, "all is received")
            except TimeoutError:
                ledger.faults += [
                    f"{name}, stream {stream}: not all was received"
                    for name, stream in ledger.behind(published)
                ]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for proxy in proxies:
                await proxy.stop()
            server.send_signal(signal.SIGTERM)
            await server.wait()
    return report(ledger, published, proxies, seconds, seed, python, javascript)


def report(
    ledger: Ledger,
    published: dict[int, int],
    proxies: list[ChaosProxy],
    seconds: float,
    seed: int,
    python: int,
    javascript: int,
) -> bool:
    count, clients = sum(published.values()), python + javascript
    if ledger.deliveries != count * clients:
        ledger.faults.append(f"{ledger.deliveries} deliveries, not {count} to each of {clients} clients")
    did = sum((proxy.did for proxy in proxies), Counter[str]())
    print(f"soak of {seconds:g} s, seed {seed}: {count} messages published, {ledger.deliveries} handed over")
    for library, clients in (("python", python), ("javascript", javascript)):
        got = sum(1 for (name, _) in ledger.ready if name.startswith(library))
        received = sum(last for (name, _), last in ledger.last.items() if name.startswith(library))
        times = ledger.notes[f"{library} connected"] - clients
        print(f"  {library}: {clients} clients, {got} streams, {received} messages, {times} reconnects")
    print("  the proxy: " + ", ".join(f"{number} {what}" for what, number in sorted(did.items())))
    for fault in ledger.faults[:20]:
        print(f"  FAULT {fault}")
    print("  every message once and in order" if not ledger.faults else f"  {len(ledger.faults)} FAULTS")
    return not ledger.faults


async def start_server(folder: Path) -> tuple[asyncio.subprocess.Process, tuple[int, int]]:
    """Start a ``twistd notify``; return the process and its two ports."""
    twistd = Path(sys.executable).parent / "twistd"
    ports = free_port(), free_port()
    names = "NOTIFY_LISTEN__PUBLIC", "NOTIFY_LISTEN__INTERNAL"
    listen = {name: f"tcp:{port}:interface=127.0.0.1" for name, port in zip(names, ports, strict=True)}
    server = await asyncio.create_subprocess_exec(
        *(str(twistd), "-n", "--pidfile=", "notify"),
        cwd=folder,
        env={**os.environ, **SERVER, **listen},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert server.stdout is not None
    async for line in server.stdout:
        if b"ready: public" in line:
            drain = asyncio.ensure_future(server.stdout.read())
            server.drain = drain  # type: ignore[attr-defined] # kept, so that it is not collected
            return server, ports
    raise RuntimeError("the server did not start")


async def until(condition: Any, tasks: list[Any], timeout: float, what: str) -> None:
    """Wait until the condition holds. Raises what a task raises, and ``TimeoutError``."""
    end = time.monotonic() + timeout
    while not condition():
        for task in tasks:
            if task.done():
                task.result()
                raise RuntimeError("a client ended")
        if time.monotonic() > end:
            raise TimeoutError(what)
        await asyncio.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--python", type=int, default=6, help="clients of the Python library")
    parser.add_argument("--javascript", type=int, default=6, help="clients of the JavaScript library")
    parser.add_argument("--rate", type=float, default=30, help="messages a second")
    given = parser.parse_args()
    well = asyncio.run(soak(given.seconds, given.seed, given.python, given.javascript, given.rate))
    sys.exit(not well)


if __name__ == "__main__":
    main()
