"""The traces of a node. A question starts or continues one; it ends on request, or when questions stop coming."""

from __future__ import annotations

from notify import topics
from notify.core.hub import Hub
from notify.core.timers import Timer
from notify.core.witness import Collected, Trace, TraceOrder, Witness
from notify.interfaces import IConnection

#: traces that a node runs at once, and how many of them may be limited to some workspaces, so that tenants leave some
#: for the operator
MOST_TRACES, MOST_OF_TENANTS = 8, 4
#: seconds without a question after which a trace ends
LEASE = 30.0


class Traces:
    """Sets the witness in ``hub`` and its dispatcher while there is a trace. ``node`` is this node's name."""

    def __init__(self, hub: Hub, node: str) -> None:
        self._hub = hub
        self._node = node
        self._witness = Witness(hub.live, hub.registry, hub.now, hub.wheel.seconds)
        self._timer: Timer | None = None

    def collect(self, order: TraceOrder) -> Collected:
        """Start, continue or end a trace. Returns what it has seen since the last question."""
        traces, now = self._witness.traces, self._hub.wheel.seconds()
        if order.end:
            traces.pop(order.trace, None)
            self._settle()
            return Collected()
        trace = traces.get(order.trace)
        if trace is None:
            tenants = sum(not one.order.everywhere for one in traces.values())
            if len(traces) >= MOST_TRACES or (not order.everywhere and tenants >= MOST_OF_TENANTS):
                return Collected(busy=True)
            trace = traces[order.trace] = Trace(order, f"{self._hub.random.getrandbits(64):016x}", now)
            self._settle()
            self._witness.there(trace, self._there(trace))
        trace.asked = now
        return trace.tell(self._node, order.after.get(trace.life, 0))

    def _there(self, trace: Trace) -> list[IConnection]:
        hub, order = self._hub, trace.order
        if order.user_id is None:
            return [] if order.topic is None else list(hub.registry.members(order.topic))
        there = list(hub.registry.members(topics.user(order.workspace_id, order.user_id)))
        if order.everywhere:  # only an operator asks this; by workspace it is one lookup in a table
            there += [one for one in hub.connections if trace.elsewhere(one)]
        return there

    def _settle(self) -> None:
        hub, traces = self._hub, self._witness.traces
        hub.witness = hub.dispatcher.witness = self._witness if traces else None
        if not traces:
            hub.wheel.cancel(self._timer)
            self._timer = None
        elif self._timer is None:
            self._timer = hub.wheel.after(LEASE / 2, self._look)

    def _look(self) -> None:
        self._timer = None
        traces, now = self._witness.traces, self._hub.wheel.seconds()
        for id, trace in list(traces.items()):
            if now - trace.asked > LEASE:
                del traces[id]
        self._settle()
