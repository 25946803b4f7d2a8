"""What the node in ``benchmarks.jetstream`` does: one coroutine for each task. Imported once the reactor is there."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from random import Random
from typing import Any

import nats
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater

from notify.brokers.jetstream import JetStreamBroker
from notify.brokers.jetstream.settings import JetStreamSettings
from notify.components import Context
from notify.config import Config
from notify.messages import Message, Position
from notify.nats.bridge import as_deferred
from notify.observe.metrics import Metrics
from notify.testing import chat_payload
from notify.topics import chat

Say = Callable[..., None]


async def broker(urls: list[str], deliver: Callable[[Message], None], **settings: Any) -> JetStreamBroker:
    made = JetStreamBroker(
        JetStreamSettings(servers=tuple(urls), **settings),
        Context(reactor, Metrics(), Random(1), "bench", Config()),
    )
    await made.start(deliver, lambda topic: None)
    return made


class Meter:
    """Counts, and knows the CPU and the clock from the first message to the last."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.done: Deferred[tuple[float, float]] = Deferred()
        self.begin = (0.0, 0.0)

    def one(self, _: object = None) -> None:
        if not self.begin[0]:
            self.begin = (time.process_time(), time.monotonic())
        self.left -= 1
        if not self.left:
            self.done.callback((time.process_time() - self.begin[0], time.monotonic() - self.begin[1]))


async def receive(say: Say, urls: list[str], mode: str, count: int, chats: int) -> None:
    meter = Meter(count)
    if mode == "core":
        client = await as_deferred(nats.connect(urls[0]))

        async def heard(message: Any) -> None:
            meter.one()

        await as_deferred(client.subscribe("plain.workspace.1.>", cb=heard))
        await as_deferred(client.flush())
    else:
        made = await broker(urls, meter.one, delivery=mode)
        await gatherResults([made.follow(chat(1, n)) for n in range(1, chats + 1)])
    say(ready=True)
    cpu, seconds = await meter.done
    say(cpu=cpu, seconds=seconds)
    await deferLater(reactor, 60, lambda: None)


async def latency(say: Say, urls: list[str], mode: str, replicas: int, rate: int, seconds: float) -> None:
    sent: dict[int, float] = {}
    took: list[float] = []

    def heard(message: Message) -> None:
        took.append(time.perf_counter() - sent.pop(message.event.message_id))  # type: ignore[union-attr]

    made = await broker(urls, heard, delivery=mode, replicas=replicas)
    topics = [chat(1, n) for n in range(1, 51)]
    await gatherResults([made.follow(topic) for topic in topics])
    number = 0

    def publish() -> None:
        nonlocal number
        topic = topics[number % len(topics)]
        number += 1
        payload = chat_payload(topic, number, "x" * 100)
        sent[number] = time.perf_counter()
        made.publish(topic, payload)

    loop = LoopingCall(publish)
    loop.start(1 / rate)
    await deferLater(reactor, 1 + seconds, lambda: None)
    loop.stop()
    await deferLater(reactor, 0.5, lambda: None)
    took = sorted(took[rate:])
    say(p50=took[len(took) // 2], p99=took[len(took) * 99 // 100], count=len(took), missing=len(sent))
    await deferLater(reactor, 60, lambda: None)


async def replays(say: Say, urls: list[str], count: int, chats: int, messages: int) -> None:
    made = await broker(urls, lambda message: None)
    filled: Deferred[None] = Deferred()
    signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(filled.callback, None))
    say(ready=True)
    await filled
    epoch = made._reader.epoch
    topics = [chat(1, n) for n in range(1, chats + 1)]
    for topic in topics:
        await made.follow(topic)
    each = messages // chats
    begin = time.monotonic()
    got = await gatherResults(
        [
            # No two are the same.
            made.replay(
                topics[n % chats],
                Position(epoch, (each - 51 - n // chats % (each - 51)) * chats + n % chats + 1),
                50,
                2**20,
            )
            for n in range(count)
        ]
    )
    different = count / (time.monotonic() - begin)
    if {len(one.messages) for one in got} != {50}:
        raise AssertionError("a replay had not 50 messages")
    begin = time.monotonic()
    await gatherResults(
        [made.replay(topics[0], Position(epoch, (each - 51) * chats + 1), 50, 2**20) for _ in range(count)]
    )
    say(different=different, same=count / (time.monotonic() - begin))
    await deferLater(reactor, 60, lambda: None)


async def idle(say: Say, urls: list[str], mode: str, seconds: float) -> None:
    made = await broker(urls, lambda message: None, delivery=mode)
    await gatherResults([made.follow(chat(1, n)) for n in range(1, 11)])
    say(ready=True)
    await deferLater(reactor, 1, lambda: None)
    cpu, begin = time.process_time(), time.monotonic()
    await deferLater(reactor, seconds - 1, lambda: None)
    say(percent=100 * (time.process_time() - cpu) / (time.monotonic() - begin))
    await deferLater(reactor, 60, lambda: None)
