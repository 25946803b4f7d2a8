"""One peer through one schedule: servers, the breaking proxy, clients, publishers, faults; and then the count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from random import Random

from benchmarks.load import Unmeasurable
from benchmarks.loss import schedule
from benchmarks.loss.ledger import Counts, Ledger
from benchmarks.loss.peers import Peer
from benchmarks.loss.publisher import Room
from benchmarks.servers import Server
from tests.soak.proxy import ChaosProxy

#: seconds for all to subscribe, for a server to leave in good order, and for all to come back in the end
READY, LEAVE, SETTLE = 30.0, 10.0, 40.0


@dataclass(frozen=True)
class Load:
    """The same for every peer. ``rate`` is messages a second, over all rooms."""

    seconds: float = 60.0
    rate: float = 50.0
    clients: int = 20
    rooms: int = 5
    seed: int = 1


async def run(peer: Peer, name: str, load: Load) -> Counts:
    """What became of all messages. Raises ``Unmeasurable`` where something is missing or does not begin."""
    ledger = Ledger({f"client-{index}": index % load.rooms + 1 for index in range(load.clients)})
    with ExitStack() as stack:
        servers = peer.make()
        for server in servers:
            await asyncio.to_thread(stack.enter_context, server)
        front = servers[peer.front :]
        # All that is random here is in the schedule: left to itself, this proxy only passes on.
        proxy = ChaosProxy([server.port for server in front], Random(load.seed))
        proxy.calm = True
        await proxy.start()
        clients = asyncio.ensure_future(peer.clients(proxy.port, ledger))
        rooms = [Room(room, front, ledger) for room in range(1, load.rooms + 1)]
        try:
            await _until(lambda: len(ledger.ready) == load.clients, clients, READY)
            if len(ledger.ready) < load.clients:
                raise Unmeasurable(f"{len(ledger.ready)} of {load.clients} clients subscribed in {READY:g} s")
            start, lasted = time.monotonic(), 0.0
            async with asyncio.TaskGroup() as group:
                for room in rooms:
                    group.create_task(_publish(room, start + load.seconds, load.rooms / load.rate))
                for fault in schedule.draw(name, load.seconds, load.seed):
                    await asyncio.sleep(start + fault.at - time.monotonic())
                    began = time.monotonic()
                    await _meet(fault, proxy, servers[::-1])
                    lasted += time.monotonic() - began
            await _settle(rooms, ledger, clients)
        finally:
            clients.cancel()
            await asyncio.gather(clients, return_exceptions=True)
            for room in rooms:
                room.close()
            await proxy.stop()
    return replace(ledger.counts(), lasted=round(lasted, 1))


async def _publish(room: Room, end: float, interval: float) -> None:
    while (now := time.monotonic()) < end:
        await room.publish()
        await asyncio.sleep(max(0.0, now + interval - time.monotonic()))


async def _meet(fault: schedule.Fault, proxy: ChaosProxy, servers: list[Server]) -> None:
    """Let a fault happen, until it is over."""
    if fault.kind in (schedule.INSTANT, schedule.SILENT):
        await proxy.outage(schedule.OUTAGE, fault.kind == schedule.SILENT)
        return
    server = servers[fault.turn % len(servers)]
    if fault.kind == schedule.KILL:
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(schedule.OUTAGE)
        await asyncio.to_thread(server.start)
        return
    # As a balancer does that has noticed: no new clients for a server that is about to leave.
    balanced = server.port in proxy.targets
    if balanced:
        proxy.targets.remove(server.port)
    await asyncio.to_thread(server.stop, LEAVE)
    await asyncio.to_thread(server.start)
    if balanced:
        proxy.targets.append(server.port)


async def _settle(rooms: list[Room], ledger: Ledger, clients: asyncio.Future[None]) -> None:
    """Go on slowly until every client has the newest message: whoever is still away then has been given its time."""
    end = time.monotonic() + SETTLE
    while time.monotonic() < end:
        for room in rooms:
            await room.publish()
        await _until(lambda: not ledger.away(), clients, 2)
        if not ledger.away():
            return


async def _until(condition: Callable[[], bool], clients: asyncio.Future[None], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        if clients.done():
            clients.result()
        await asyncio.sleep(0.05)
