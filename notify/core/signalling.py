"""The client frame ``signal``: who may send one, how often, and how large (docs/protocol.md, section 1)."""

from __future__ import annotations

from notify.core.client import Client
from notify.messages import Poison, Signal, check_data
from notify.wire import frames
from notify.wire.frames import Ok


def signal(client: Client, frame: frames.Signal) -> None:
    """Send a signal to the chat's other members. ``ok`` means that it is on its way, not that any of them receives it."""
    hub, connection = client.hub, client.connection
    identity = connection.identity
    if identity is None or not connection.encoding.signals:
        client.error("invalid_message", "signals are for those who were granted that feature", frame.id)
    elif not hub.signals.allows(connection):
        most = hub.live.now.limits.signals_per_second
        client.error("rate_limited", f"more than {most} signals a second", frame.id, retry=True)
    elif frame.chat_id not in client.chats:
        client.error("forbidden", "subscribe to a chat to send signals to it", frame.id)
    else:
        try:
            check_data(frame.data, hub.signals.size)
        except Poison as fault:
            # The frame itself is valid. The signal is lost, as any may be, but does not count as an invalid frame.
            client.error("invalid_message", str(fault), frame.id)
            return
        made = Signal(identity.workspace_id, frame.chat_id, identity.user_id, frame.kind, frame.data)
        if not hub.signals.send(made):
            client.error("unavailable", "not possible right now", frame.id, retry=True)
        elif frame.id is not None:
            client.send(Ok(frame.id))
