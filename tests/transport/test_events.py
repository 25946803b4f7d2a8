"""Event streams on the public port, fed by hand: a WebSocket's session, used by a request that only reads."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from msgspec.structs import replace
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from notify.config import Duration, Limits, Size
from notify.core.access import disconnect
from notify.core.traces import Traces
from notify.core.witness import TraceOrder
from notify.identity import Identity
from notify.testing import chat_payload, event_payload, notification_payload
from notify.topics import chat, user
from notify.transport.events import MOST_KEPT, PATIENCE
from notify.transport.listener import is_events
from notify.wire.eventstream import parse
from tests.core.test_access import Reviewer
from tests.support.eventstream import Event, EventClient, Reader
from tests.support.running import LocalServer
from tests.support.running import token as real_token
from tests.support.world import NOW, World
from tests.transport.test_eventrequest import parts, request
from tests.transport.test_websocket_attack import HANDSHAKE, Wire, head

LIMITS = Limits(max_frame=Size(4096))


class Stream:
    """A client that has requested a stream."""

    def __init__(self, wire: Wire, query: str = "", token: str = "t", **headers: str | None) -> None:
        self.wire = wire
        self.transport = wire.transport
        line = f"GET /events{'?' + query if query else ''} HTTP/1.1"
        wire.feed(request(line, Authorization=f"Bearer {token}", **headers) + b"\r\n\r\n")
        self.protocol = wire.protocol
        self._read = 0
        self._reader = Reader()

    @property
    def answered(self) -> bool:
        return bool(self.transport.value())

    @property
    def status(self) -> int:
        return int(self.transport.value()[9:12])

    def refused(self) -> Any:
        """Status and error code of an answer that is not a stream."""
        status, _, body = parts(self.transport.value())
        return status, body["error"]["code"]

    def take(self) -> list[Event]:
        """The events that have arrived since the last call."""
        value = self.transport.value()
        self._read = self._read or value.index(b"\r\n\r\n") + 4
        data, self._read = value[self._read :], len(value)
        return self._reader.feed(data)

    def names(self) -> list[str]:
        return [event.name for event in self.take()]

    @property
    def id(self) -> str:
        return self._reader.id

    @property
    def comments(self) -> int:
        self.take()
        return self._reader.comments


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.begin()

    def begin(self, **limits: Any) -> None:
        self.world = World(replace(LIMITS, **limits))
        self.world.authenticator.tokens["t"] = Identity(7, 1)
        self.wire = Wire(world=self.world)
        self.wire.transport.protocol.connectionLost()

    def ask(self, query: str = "", token: str = "t", **headers: str | None) -> Stream:
        return Stream(self.wire.again(), query, token, **headers)

    def publish(self, *chat_ids: Any, content: str = "hi") -> None:
        for chat_id in chat_ids:
            self.world.publish(chat(1, chat_id), chat_payload(chat(1, chat_id), content=content))
        self.world.turn()

    def pass_by(self, seconds: float) -> None:
        self.world.clock.pump([0.25] * int(seconds * 4))


class Choice(SynchronousTestCase):
    def test_the_first_bytes_tell_a_stream_whatever_the_method(self) -> None:
        for start, choice in (
            *((start, None) for start in (b"", b"G", b"GET /", b"GET /events", b"OPTIO", b"POST h", b"POST http://a/ev")),
            *((start, True) for start in (b"GET /events ", b"GET /events?chat=1", b"OPTIONS /events ", b"PUT http://a/events?")),
            *((start, False) for start in (b"GET /ws ", b"get /events ", b"GETS", b"G /events ", b"GET /eventsx", b"\x16\x03")),
        ):  # fmt: skip
            self.assertIs(is_events(start), choice, start)


class Beginning(Case):
    def test_it_begins_with_who_it_is_and_where_each_chat_is(self) -> None:
        self.publish(5, 5)
        stream = self.ask("chat=5&chat=abc")
        self.assertEqual(stream.status, 200)
        auth, five, abc = stream.take()
        self.assertEqual((auth.name, auth.data["user_id"], auth.data["recovered"]), ("auth_result", 7, False))
        self.assertEqual((five.data["chat_id"], five.data["seq"]), (5, 2))
        self.assertEqual(abc.data["chat_id"], "abc")
        epoch = five.data["epoch"]
        self.assertEqual(abc.id, f"{epoch}:*=0,5=2,abc=0")
        self.publish(5, "abc", 6)
        self.assertEqual([(one.data["chat_id"], one.id) for one in stream.take()],
                         [(5, f"{epoch}:*=0,5=3,abc=0"), ("abc", f"{epoch}:*=0,5=3,abc=4")])  # fmt: skip
        self.world.publish(user(1, 7), notification_payload(user(1, 7)))
        self.world.turn()
        [notified] = stream.take()
        self.assertEqual((notified.name, notified.id), ("notification", f"{epoch}:*=6,5=3,abc=4"))

    def test_it_may_be_for_notifications_alone(self) -> None:
        self.assertEqual(self.ask().names(), ["auth_result"])

    def test_wherever_the_request_is_cut(self) -> None:
        sent = request("GET /events?chat=5 HTTP/1.1", Authorization="Bearer t") + b"\r\n\r\n"
        for place in range(1, len(sent)):
            wire = self.wire.again().feed(sent[:place])
            self.assertEqual(wire.answer, b"")
            self.assertEqual(wire.feed(sent[place:]).status, b"200", place)
            wire.protocol.connectionLost()
        self.assertEqual((self.wire.admission.sockets, self.wire.events.count), (0, 0))

    def test_features_are_granted_and_bring_what_they_bring(self) -> None:
        plain, more = self.ask("chat=5"), self.ask("chat=5&features=events,unheard")
        self.assertEqual(more.take()[0].data["features"], ["events"])
        plain.take()
        self.world.publish(chat(1, 5), event_payload(chat(1, 5)))
        self.publish(5)
        self.assertEqual(plain.names(), ["chat_message"])
        self.assertEqual(more.names(), ["chat_event", "chat_message"])

    def test_presence_is_told_to_who_asks_for_it(self) -> None:
        stream = self.ask("chat=5&watch_presence=true")
        self.pass_by(1)
        self.assertEqual(stream.names(), ["auth_result", "subscribed", "presence"])

    def test_it_is_listed_and_counted_as_a_connection(self) -> None:
        first, second = self.ask("chat=5"), self.ask()
        self.assertEqual(
            (self.world.sample("notify_connections"), self.world.sample("notify_event_streams")), (2, 2)
        )
        self.assertEqual({one.encoding.subprotocol for one in self.world.hub.connections}, {"event-stream"})
        self.assertEqual(self.wire.admission.arriving, 0)
        for stream in (first, second):
            stream.protocol.connectionLost()
        self.assertEqual(
            (self.world.sample("notify_connections"), self.world.sample("notify_event_streams")), (0, 0)
        )
        self.assertEqual(self.world.sample("notify_closes_total", code="1001"), 2)
        self.assertEqual(self.world.sample("notify_subscriptions"), 0)
        self.assertEqual(self.wire.admission.sockets, 0)

    def test_behind_another_request_on_a_connection_that_a_proxy_keeps(self) -> None:
        wire = self.wire.again()
        self.assertTrue(wire.port.door(request("GET /events HTTP/1.1")) is wire.events)
        wire.feed(b"GET /hello")
        arriving: Any = wire.transport.protocol
        self.assertTrue(arriving.wants(request("GET /events?chat=5 HTTP/1.1") + b"\r\n\r\n"))
        wire.transport.clear()
        arriving.takes(request("GET /events?chat=5 HTTP/1.1", Authorization="Bearer t") + b"\r\n\r\n")
        self.assertEqual(wire.status, b"200")

    def test_where_it_is_switched_off_the_path_is_the_sites(self) -> None:
        self.wire.port.events = None
        stream = self.ask("chat=5")
        self.assertEqual(stream.status, 299)
        self.wire.again().feed(head(*HANDSHAKE))
        self.assertEqual(self.wire.status, b"101")

    def test_a_trace_sees_it(self) -> None:
        traces, order = Traces(self.world.hub, "n"), TraceOrder("x" * 16, 1, 7, None, True)
        traces.collect(order)
        stream = self.ask("chat=5")
        self.publish(5)
        stream.protocol.connectionLost()
        seen = [one for one in traces.collect(order).events if one.what != "watching"]
        self.assertEqual(
            [one.what for one in seen if one.what != "frame"],
            ["connect", "auth", "subscribe", "message", "close"],
        )
        self.assertEqual((seen[0].type, seen[-1].code), ("event-stream", 1001))

    def test_a_trace_sees_who_asks_for_what_is_none(self) -> None:
        traces, order = Traces(self.world.hub, "n"), TraceOrder("x" * 16, 1, 7, None, True)
        traces.collect(order)
        self.ask("&".join(f"chat={n}" for n in range(33)))
        self.ask("chat=5", "unknown")
        refused = [one for one in traces.collect(order).events if one.what in ("turned_away", "auth")]
        self.assertEqual(
            [(one.what, one.outcome, one.reason) for one in refused],
            [("turned_away", "400", "a stream has at most 32 chats"), ("auth", "refused", "unknown token")],
        )


class Resuming(Case):
    def test_what_was_missed_comes_once_and_in_order_whatever_was_cut(self) -> None:
        self.publish(5, 6)
        stream = self.ask("chat=5&chat=6")
        stream.take()
        seen: list[tuple[int, int]] = []
        for _ in range(5):
            self.publish(5, 6, 5)
            for come_back in (False, True):
                if come_back:
                    stream.protocol.connectionLost()
                    self.publish(6, 5)
                    stream = self.ask("chat=5&chat=6", Last_Event_ID=stream.id)
                came = stream.take()
                self.assertNotIn("lost", [event.name for event in came])
                seen += [(one.data["chat_id"], one.data["seq"]) for one in came if one.name == "chat_message"]
        self.assertEqual(sorted(seq for _, seq in seen), list(range(3, 28)))
        for chat_id in (5, 6):
            mine = [seq for chat, seq in seen if chat == chat_id]
            self.assertEqual(mine, sorted(mine))

    def test_notifications_are_resumed_too(self) -> None:
        stream = self.ask()
        stream.take()
        last = stream.id
        self.world.publish(user(1, 7), notification_payload(user(1, 7)))
        self.world.turn()
        again = self.ask(Last_Event_ID=last)
        self.assertEqual(again.names(), ["auth_result", "notification"])

    def test_what_cannot_be_resumed_is_told_chat_by_chat(self) -> None:
        self.publish(5, 6)
        stream = self.ask("chat=5&chat=6")
        stream.take()
        epoch = next(iter(parse(stream.id).values())).epoch
        self.publish(5)
        again = self.ask("chat=5&chat=6&chat=7", Last_Event_ID=f"{epoch}:*=0,5=1,6=999")
        events = again.take()
        self.assertEqual([event.name for event in events],
                         ["auth_result", "subscribed", "chat_message", "subscribed", "lost", "subscribed"])  # fmt: skip
        self.assertEqual(events[4].data, {"type": "lost", "chat_id": 6, "epoch": epoch, "seq": 2})
        self.assertEqual(again.id, f"{epoch}:*=0,5=3,6=2,7=0")

    def test_positions_of_chats_that_are_not_asked_for_are_forgotten(self) -> None:
        stream = self.ask("chat=5", Last_Event_ID="e:5=1,8=2")
        stream.take()
        self.assertEqual(set(parse(stream.id)), {None, 5})

    def test_the_position_of_a_chat_that_is_refused_stays(self) -> None:
        self.world.authenticator.forbidden = {8}
        stream = self.ask("chat=5&chat=8", Last_Event_ID="e:8=2")
        stream.take()
        self.assertEqual(parse(stream.id)[8].seq, 2)

    def test_a_long_resumption_is_no_slow_client(self) -> None:
        self.publish(*[5] * 900)
        stream = self.ask("&".join(f"chat={n}" for n in range(32)))
        stream.take()
        epoch = parse(stream.id)[5].epoch
        again = self.ask("&".join(f"chat={n}" for n in range(32)), Last_Event_ID=f"{epoch}:5=1")
        self.pass_by(2)
        self.assertEqual(again.names().count("chat_message"), 899)
        self.assertFalse(again.transport.disconnecting)


class Refusals(Case):
    def test_a_token_that_is_not_good(self) -> None:
        for token in ("unknown", "expired"):
            self.world.authenticator.tokens["expired"] = Identity(7, 1, NOW - 1)
            stream = self.ask("chat=5", token)
            self.assertEqual(stream.refused(), (401, "unauthorized"))
            self.assertTrue(stream.transport.disconnecting)
            stream.protocol.connectionLost()
        self.assertEqual((self.world.sample("notify_connections"), self.wire.events.count), (0, 0))

    def test_a_chat_that_may_not_be_seen(self) -> None:
        self.world.authenticator.forbidden = {5, 6}
        self.assertEqual(self.ask("chat=5").refused(), (403, "forbidden"))
        self.assertEqual(self.ask("chat=5&chat=6").refused(), (403, "forbidden"))
        stream = self.ask("chat=5&chat=7&chat=6")
        events = stream.take()
        self.assertEqual([event.name for event in events], ["auth_result", "error", "subscribed", "error"])
        self.assertEqual((events[1].data["code"], events[1].data["chat_id"]), ("forbidden", 5))
        self.publish(5, 7)
        self.assertEqual([event.data["chat_id"] for event in stream.take()], [7])

    def test_while_it_cannot_be_told(self) -> None:
        self.world.authenticator.away = True
        stream = self.ask("chat=5")
        status, headers, body = parts(stream.transport.value())
        self.assertEqual((status, body["error"]["close"]), (503, 1013))
        self.assertIn(int(headers["retry-after"]), range(1, 7))
        self.begin()
        self.world.broker.away = True
        self.assertEqual(self.ask("chat=5").refused(), (503, "unavailable"))

    def test_a_chat_that_cannot_be_followed_now_is_told_beside_others(self) -> None:
        first = self.ask("chat=5")
        first.take()
        self.world.broker.away = True
        self.assertEqual(self.ask("chat=6", Last_Event_ID="").refused(), (503, "unavailable"))
        stream = self.ask("chat=5&chat=6")
        events = stream.take()
        self.assertEqual([event.name for event in events], ["auth_result", "subscribed", "error"])
        self.assertEqual((events[2].data["chat_id"], events[2].data["retry"]), (6, True))

    def test_no_answer_in_time(self) -> None:
        self.world.authenticator.held = []
        stream = self.ask("chat=5")
        self.pass_by(6)
        self.assertEqual(stream.refused(), (503, "unavailable"))

    def test_limits_of_connections(self) -> None:
        self.begin(max_connections_per_user=1)
        self.ask().take()
        self.assertEqual(self.ask().refused(), (503, "unavailable"))
        self.begin(max_arriving=1)
        self.world.authenticator.held = []
        self.ask()
        self.assertEqual(self.ask().refused(), (503, "unavailable"))
        self.pass_by(10)
        self.begin(max_connections=1)
        self.ask()
        self.assertEqual(self.ask().status, 503)

    def test_limits_of_an_address_behind_a_proxy_are_told_to_the_page(self) -> None:
        self.wire = Wire(
            ("192.168.1.1",), ("https://chat.example",), world=World(Limits(max_connections_per_address=1))
        )
        self.wire.transport.protocol.connectionLost()
        for status in (200, 429):
            stream = self.ask(X_Forwarded_For="8.8.8.8", Origin="https://chat.example")
            found, headers, _ = parts(stream.transport.value().partition(b"event:")[0])
            self.assertEqual(
                (found, headers["access-control-allow-origin"]), (status, "https://chat.example")
            )

    def test_requests_that_are_none_are_refused_and_counted(self) -> None:
        for line, status in (
            ("POST /events HTTP/1.1", b"405"),
            ("GET /events?chat=5&chat=5 HTTP/1.1", b"400"),
        ):
            self.wire.again().feed(request(line, Content_Length="3") + b"\r\n\r\n")
            self.assertEqual(self.wire.status, b"405" if line.startswith("POST") else b"400")
            self.assertEqual(self.world.sample("notify_handshakes_refused_total", status=status.decode()), 1)
        self.wire.again().feed(b"GET /events?" + b"a" * 17000)
        self.assertEqual(self.wire.status, b"431")
        self.wire.again().feed(
            request("OPTIONS /events HTTP/1.1", Origin="https://push.example") + b"\r\n\r\n"
        )
        self.assertEqual(self.wire.status, b"204")
        self.assertEqual(self.world.sample("notify_handshakes_refused_total", status="204"), 0)

    def test_a_server_that_is_starting(self) -> None:
        self.wire.welcome = False
        self.assertEqual(self.ask().refused(), (503, "unavailable"))


class Waiting(Case):
    def test_it_waits_for_the_first_chat_for_a_while_and_no_longer(self) -> None:
        self.world.broker.held = []
        held = self.ask("chat=5")
        self.world.broker.release()
        # The first hold was for the notifications' topic; this one is for the chat.
        self.world.broker.held = []
        other = self.ask("chat=6")
        self.world.broker.release()
        self.world.broker.held = []
        self.pass_by(1)
        self.assertEqual(held.names(), ["auth_result", "subscribed"])
        third = self.ask("chat=9")
        self.assertFalse(third.answered)
        self.pass_by(PATIENCE + 0.5)
        self.assertEqual(third.names(), ["auth_result"])
        self.world.broker.release()
        self.assertEqual(third.names(), ["subscribed"])
        self.assertTrue(other.answered)

    def test_it_does_not_wait_with_much_in_its_hands(self) -> None:
        self.ask("chat=1")
        self.world.broker.held = []
        stream = self.ask("chat=5")
        self.assertFalse(stream.answered)
        size, most = 0, 0
        while not stream.answered:
            self.world.publish(user(1, 7), notification_payload(user(1, 7)))
            self.world.turn()
            size, most = size + 150, most + 1
            self.assertLess(most, MOST_KEPT // 100)
        self.assertGreater(size, MOST_KEPT // 3)
        self.assertEqual(stream.names()[0], "auth_result")

    def test_who_leaves_meanwhile_is_gone(self) -> None:
        self.ask()
        self.world.broker.held = []
        stream = self.ask("chat=5")
        stream.protocol.connectionLost()
        self.pass_by(PATIENCE + 1)
        self.world.broker.release()
        self.assertFalse(stream.answered)
        self.assertEqual(self.wire.events.count, 1)

    def test_it_asks_for_no_more_at_once_than_a_client_may(self) -> None:
        self.begin(frames_per_second=4, frames_burst=3)
        stream = self.ask("&".join(f"chat={n}" for n in range(12)))
        self.assertEqual(stream.names().count("subscribed"), 2)
        self.pass_by(1.5)
        self.assertEqual(stream.names().count("subscribed"), 3)
        self.pass_by(4)
        self.assertEqual(stream.names(), ["subscribed"] * 7)


class Ending(Case):
    def closed(self, stream: Stream) -> dict[str, Any]:
        event = stream.take()[-1]
        self.assertEqual(event.name, "close")
        self.assertTrue(stream.transport.disconnecting)
        data: dict[str, Any] = event.data
        return data

    def test_a_token_that_expires_and_when_was_told(self) -> None:
        self.world.authenticator.tokens["short"] = Identity(7, 1, NOW + 10)
        stream = self.ask("chat=5", "short")
        self.assertEqual(stream.take()[0].data["expires_at"], NOW + 10)
        self.pass_by(11)
        self.assertEqual(self.closed(stream), {"type": "close", "code": 4002, "reason": "token expired"})
        stream.protocol.connectionLost()
        self.assertEqual(self.world.sample("notify_closes_total", code="4002"), 1)

    def test_a_chat_that_may_not_be_seen_any_more(self) -> None:
        reviewer = Reviewer()
        reviewer.tokens["t"] = Identity(7, 1)
        self.world.reload(authenticator=reviewer)
        self.wire._in_force["authenticator"] = reviewer
        stream = self.ask("chat=5&chat=6")
        stream.take()
        reviewer.forbidden = {5}
        self.pass_by(reviewer.recheck + 1)
        [ended] = [event for event in stream.take() if event.name == "error"]
        self.assertEqual((ended.data["code"], ended.data["chat_id"]), ("forbidden", 5))
        self.publish(5, 6)
        self.assertEqual([event.data["chat_id"] for event in stream.take()], [6])

    def test_a_drain_tells_when_to_come_back(self) -> None:
        stream = self.ask("chat=5")
        [connection] = self.world.hub.connections
        connection.close(1012, '{"retry_after_ms": 1840, "elsewhere": true}')
        self.assertEqual(
            self.closed(stream), {"type": "close", "code": 1012, "retry_after_ms": 1840, "elsewhere": True}
        )

    def test_an_operator(self) -> None:
        stream = self.ask("chat=5")
        disconnect(self.world.hub, 1, 7, reconnect=False)
        self.assertEqual(self.closed(stream)["code"], 4503)

    def test_lost_continuity(self) -> None:
        stream = self.ask("chat=5")
        self.world.dispatcher.lost(chat(1, 5))
        self.assertEqual(self.closed(stream)["code"], 4004)

    def test_who_does_not_read_is_closed_as_slow(self) -> None:
        self.begin(send_queue=Size(10_000))
        stream = self.ask("chat=5")
        stream.take()
        stream.transport.producer.pauseProducing()
        count = 0
        while not stream.transport.disconnecting:
            self.publish(5, content="x" * 100)
            count += 1
            self.assertLess(count, 100)
        self.assertGreater(count, 30)
        self.assertEqual(self.closed(stream)["code"], 4001)
        self.assertEqual(self.world.sample("notify_slow_clients_total"), 1)
        self.assertFalse(stream.transport.aborted)
        self.pass_by(2)
        self.assertTrue(stream.transport.aborted)

    def test_what_waited_comes_with_its_ids(self) -> None:
        stream = self.ask("chat=5")
        stream.take()
        producer: Any = stream.transport.producer
        producer.pauseProducing()
        for _ in range(5):
            self.publish(5)
        self.assertEqual(stream.take(), [])
        producer.resumeProducing()
        events = stream.take()
        self.assertEqual([parse(event.id)[5].seq for event in events], [1, 2, 3, 4, 5])

    def test_who_is_alone_hears_that_it_lives(self) -> None:
        self.begin(ping_interval=Duration(10))
        stream = self.ask("chat=5")
        self.assertEqual(stream.comments, 0)
        self.pass_by(31)
        self.assertEqual(stream.comments, 3)
        [connection] = self.world.hub.connections
        self.assertGreater(connection.heard, 25)
        # No heartbeat is queued behind frames that wait: those will show that the connection lives, or fill the
        # queue.
        producer: Any = stream.transport.producer
        producer.pauseProducing()
        self.publish(5)
        before = connection.queued
        self.pass_by(60)
        self.assertEqual(connection.queued, before)
        self.assertLess(connection.heard, 35)

    def test_nothing_is_read_from_it_and_who_sends_without_end_is_closed(self) -> None:
        stream = self.ask("chat=5")
        stream.take()
        stream.protocol.dataReceived(b'{"type":"ping"}')
        self.assertEqual(stream.take(), [])
        for _ in range(3000):
            stream.protocol.dataReceived(b"x" * 2048)
        self.assertEqual(self.closed(stream)["code"], 4504)
        stream.protocol.dataReceived(b"x")

    def test_what_came_with_the_request_is_not_read_either(self) -> None:
        wire = self.wire.again()
        wire.feed(
            request("GET /events HTTP/1.1", Authorization="Bearer t")
            + b"\r\n\r\nGET /events HTTP/1.1\r\n\r\n"
        )
        self.assertEqual(wire.answer.count(b"HTTP/1.1 "), 1)

    def test_nothing_is_left_of_it(self) -> None:
        stream = self.ask("chat=5&chat=6")
        stream.protocol.connectionLost()
        self.pass_by(120)
        self.assertEqual(self.wire.events.count, 0)
        self.assertEqual((self.world.hub.connections, self.world.hub.subscribers), ({}, {}))
        self.assertEqual(self.wire.events.queues.waiting, {})


class Ends(TestCase):
    timeout = 30

    async def test_a_stream_that_is_gone_frees_itself_without_a_look_for_cycles(self) -> None:
        server = await LocalServer().start(self)
        from twisted.internet import reactor

        gc.disable()
        self.addCleanup(gc.enable)
        left: list[Any] = []
        port = server.service.public.port.getHost().port
        for way in ("vanish", "kicked"):
            client = EventClient(port, "chat=5", real_token())
            await deferToThread(client.begun)
            [connection] = list(server.hub.connections)
            stream = connection._wire  # type: ignore[attr-defined]
            left += [weakref.ref(thing) for thing in (stream, stream.transport)]
            del stream
            if way == "kicked":
                connection.close(4503, "bye")
                await deferToThread(client.until, "close")
            del connection
            client.close()
            while server.hub.connections:
                await deferLater(reactor, 0.02, lambda: None)
        for _ in range(100):
            if not any(ref() for ref in left):
                break
            await deferLater(reactor, 0.02, lambda: None)
        self.assertEqual([ref() for ref in left if ref() is not None], [])
