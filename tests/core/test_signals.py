"""Signals: what the members of a chat tell each other now, and nobody stores (docs/protocol.md, Signals)."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from notify.config import Limits, Size
from notify.core.live import InForce, Live
from notify.core.signals import A_TURN, Bucket, Signals
from notify.messages import Signal
from notify.observe.metrics import Metrics
from notify.testing import FakeConnection, chat_payload, event_payload
from notify.topics import Topic, chat
from notify.wire.encodings import encoding, featured
from notify.wire.protobuf import pb
from tests.support.world import Client, TableAuthenticator, World

ROOM = chat(1, 10)


def payload(topic: Topic = ROOM, user_id: int | str = 9, kind: str = "typing", data: Any = None) -> bytes:
    """A signal, as a node sends it to the others."""
    return msgspec.json.encode(
        {
            "workspace_id": topic.workspace_id,
            "chat_id": topic.id,
            "user_id": user_id,
            "kind": kind,
            "data": data,
        }
    )


class Base(SynchronousTestCase):
    limits: Limits | None = None

    def setUp(self) -> None:
        self.world = World(self.limits)

    def member(self, user_id: int, chat_id: int = 10, workspace_id: int = 1, **auth: Any) -> Client:
        """A client with the feature, subscribed to the chat."""
        client = self.world.client(user_id, workspace_id, **{"features": ["signals"], **auth})
        self.assertEqual(client.ask(type="subscribe", chat_id=chat_id, id=1)["type"], "subscribed")
        return client

    def heard(self, client: Client) -> list[Any]:
        """The kinds of the signals that a client was sent by the end of the turn."""
        self.world.turn()
        frames = client.take()
        self.assertEqual({frame["type"] for frame in frames} - {"signal"}, set())
        return [frame["kind"] for frame in frames]

    def dropped(self, reason: str) -> float:
        return self.world.sample("notify_signals_dropped_total", reason=reason)


class Sent(Base):
    def test_the_others_are_told_who_signals_what(self) -> None:
        one, other = self.member(1), self.member(2)
        one.send(type="signal", chat_id=10, kind="typing", data={"until": 5, "x": [None, 1.5]})
        self.assertEqual(other.take(), [])
        self.world.turn()
        self.assertEqual(
            other.take(),
            [
                {
                    "type": "signal",
                    "chat_id": 10,
                    "user_id": 1,
                    "kind": "typing",
                    "data": {"until": 5, "x": [None, 1.5]},
                }
            ],
        )
        self.assertEqual(one.take(), [])

    def test_a_users_own_devices_are_not_told_but_of_what_others_signal(self) -> None:
        one, device, other = self.member(1), self.member(1), self.member(2)
        one.send(type="signal", chat_id=10, kind="a", data=None)
        other.send(type="signal", chat_id=10, kind="b", data=None)
        self.assertEqual([self.heard(each) for each in (one, device, other)], [["b"], ["b"], ["a"]])

    def test_who_gives_an_id_gets_ok(self) -> None:
        one = self.member(1)
        answer = one.ask(type="signal", chat_id=10, kind="typing", data=None, id="x")
        self.assertEqual(answer, {"type": "ok", "id": "x"})

    def test_signals_of_a_turn_are_one_write_in_their_order(self) -> None:
        one, other = self.member(1), self.member(2, features=["signals", "events"])
        writes: list[bytes] = []
        other.connection.write = writes.append  # type: ignore[method-assign]
        for kind in "abc":
            one.send(type="signal", chat_id=10, kind=kind, data=None)
        self.world.turn()
        self.assertEqual(len(writes), 1)
        self.assertEqual(
            [kind for kind in "abc" if f'"kind":"{kind}"'.encode() in writes[0]], ["a", "b", "c"]
        )
        self.assertLess(writes[0].index(b'"a"'), writes[0].index(b'"c"'))

    def test_they_have_no_place_among_messages(self) -> None:
        one, other = self.member(1), self.member(2)
        self.world.publish(ROOM, chat_payload(ROOM, 1))
        one.send(type="signal", chat_id=10, kind="typing", data=None)
        self.world.publish(ROOM, chat_payload(ROOM, 2))
        self.world.turn()
        frames = other.take()
        messages = [frame for frame in frames if frame["type"] == "chat_message"]
        self.assertEqual([(frame["seq"], frame["prev"]) for frame in messages], [(1, 0), (2, 1)])
        self.assertEqual(len(frames), 3)
        since = {"epoch": messages[0]["epoch"], "seq": 0}
        other.send(type="subscribe", chat_id=10, since=since)
        answer, *replayed = other.take()
        self.assertEqual((answer["recovered"], answer["seq"], replayed), (True, 2, messages))

    def test_nothing_is_kept_for_who_comes_later(self) -> None:
        one = self.member(1)
        one.send(type="signal", chat_id=10, kind="typing", data=None)
        self.world.turn()
        late = self.world.client(2, features=["signals"])
        late.send(type="subscribe", chat_id=10, since={"epoch": "", "seq": 0}, id=1)
        self.world.turn()
        self.assertEqual([frame["type"] for frame in late.take()], ["subscribed"])

    def test_ids_may_be_text(self) -> None:
        self.world.authenticator.tokens["t"] = self.world.authenticator.tokens.get("t") or _identity("u-1")
        one = self.world.connect()
        one.send(type="auth", token="t", features=["signals"])
        one.send(type="subscribe", chat_id="c-1", id=1)
        other = self.member(2, "c-1")  # type: ignore[arg-type]
        one.send(type="signal", chat_id="c-1", kind="typing", data=None)
        self.world.turn()
        [frame] = other.take()
        self.assertEqual((frame["chat_id"], frame["user_id"]), ("c-1", "u-1"))


def _identity(user_id: str) -> Any:
    from notify.identity import Identity

    return Identity(user_id, 1)


class Granted(Base):
    def test_who_was_not_granted_them_neither_sends_nor_hears(self) -> None:
        one, without = self.member(1), self.member(2, features=["events"])
        one.send(type="signal", chat_id=10, kind="typing", data=None)
        self.assertEqual(self.heard(without), [])
        answer = without.ask(type="signal", chat_id=10, kind="typing", data=None, id=1)
        self.assertEqual((answer["code"], answer["id"]), ("invalid_message", 1))
        self.assertEqual(self.heard(one), [])
        for _ in range(20):
            without.send(type="signal", chat_id=10, kind="typing", data=None)
        self.assertIsNone(without.closed)

    def test_a_broker_that_carries_none_has_nobody_granted_them(self) -> None:
        self.world.hub.signals = Signals(
            None, self.world.metrics, self.world.live, self.world._soon, self.world.clock.seconds
        )
        client = self.world.client(1, features=["signals", "events"])
        self.assertEqual(client.result[0]["features"], ["events"])
        self.assertFalse(self.world.hub.signals.send(Signal(1, 10, 1, "typing", Raw(b"null"))))

    def test_events_and_signals_go_together(self) -> None:
        one, other = self.member(1), self.member(2, features=["signals", "events"])
        self.world.publish(ROOM, event_payload(ROOM, 1))
        one.send(type="signal", chat_id=10, kind="typing", data=None)
        self.world.turn()
        self.assertEqual({frame["type"] for frame in other.take()}, {"chat_event", "signal"})


class Refused(Base):
    limits = Limits(max_invalid=1000)

    def refused(self, client: Client, **frame: Any) -> str:
        answer = client.ask(**{"type": "signal", "chat_id": 10, "kind": "k", "data": None, "id": 7, **frame})
        self.assertEqual((answer["type"], answer["id"]), ("error", 7))
        code: str = answer["code"]
        return code

    def test_who_is_not_in_the_chat_may_not(self) -> None:
        member, stranger = self.member(1), self.world.client(2, features=["signals"])
        self.assertEqual(self.refused(stranger), "forbidden")
        stranger.send(type="subscribe", chat_id=10)
        stranger.send(type="unsubscribe", chat_id=10)
        self.assertEqual(self.refused(stranger), "forbidden")
        self.world.authenticator.forbidden.add(11)
        stranger.send(type="subscribe", chat_id=11)
        self.assertEqual(self.refused(stranger, chat_id=11), "forbidden")
        self.assertEqual(self.heard(member), [])

    def test_before_auth_nobody_may(self) -> None:
        self.assertEqual(self.refused(self.world.connect()), "unauthorized")

    def test_another_workspaces_chat_of_the_same_id_is_another(self) -> None:
        here, there = self.member(1), self.member(2, workspace_id=2)
        there.send(type="signal", chat_id=10, kind="typing", data=None)
        self.assertEqual(self.heard(here), [])

    def test_what_is_no_signal_is_invalid(self) -> None:
        client = self.member(1)
        for wrong in ({"kind": ""}, {"kind": "x" * 65}, {"kind": 1}, {"chat_id": "5"}):
            self.assertEqual(self.refused(client, **wrong), "invalid_message", wrong)
        for raw in (
            b'{"type":"signal","chat_id":10,"kind":"k","id":7}',
            b'{"type":"signal","chat_id":10,"kind":"k","data":1e999,"id":7}',
            b'{"type":"signal","chat_id":10,"kind":"k","data":"\xff","id":7}',
        ):
            client.connection.take()
            client.raw(raw)
            [answer] = client.take()
            self.assertEqual(answer["code"], "invalid_message", raw)

    def test_data_that_is_too_large_or_nested_too_deeply_is_invalid_and_nobody_hears_it(self) -> None:
        self.world.reload(limits=Limits(max_invalid=4, signal_size=Size(1_000_000)))
        client, other = self.member(1), self.member(2)
        deep = (
            b'{"type":"signal","chat_id":10,"kind":"k","data":'
            + b"[" * 100_000
            + b"]" * 100_000
            + b',"id":7}'
        )
        client.raw(deep)
        [answer] = client.take()
        self.assertEqual(answer["code"], "invalid_message")
        self.world.reload(limits=Limits(max_invalid=4))
        self.assertEqual(client.ask(type="signal", chat_id=10, kind="k", data="x" * 1022, id=7)["type"], "ok")
        for _ in range(5):
            self.assertEqual(self.refused(client, data="x" * 1023), "invalid_message")
        self.assertEqual(len(self.heard(other)), 1)
        self.assertIsNone(
            client.closed
        )  # a client that shares a text that grows too long loses signals, but not the chat

    def test_while_the_broker_carries_none_they_are_lost_and_the_sender_is_told(self) -> None:
        client = self.member(1)
        self.world.broker.stop()
        answer = client.ask(type="signal", chat_id=10, kind="typing", data=None, id=1)
        self.assertEqual((answer["code"], answer["retry"]), ("unavailable", True))
        self.assertEqual(self.dropped("unavailable"), 1)


class Rate(Base):
    limits = Limits(signals_per_second=2, signals_burst=3)

    def say(self, client: Client) -> str:
        answer = client.ask(type="signal", chat_id=10, kind="typing", data=None, id=1)
        return str(answer.get("code", answer["type"]))

    def test_a_connection_has_a_rate_and_a_burst_of_its_own(self) -> None:
        one, other = self.member(1), self.member(1)
        self.assertEqual([self.say(one) for _ in range(4)], ["ok"] * 3 + ["rate_limited"])
        self.assertEqual(self.say(other), "ok")
        self.world.clock.advance(1)
        self.assertEqual([self.say(one) for _ in range(3)], ["ok", "ok", "rate_limited"])
        self.world.clock.advance(100)
        self.assertEqual([self.say(one) for _ in range(4)], ["ok"] * 3 + ["rate_limited"])
        self.assertEqual(self.dropped("rate"), 3)

    def test_what_is_over_it_is_not_processed_and_says_so(self) -> None:
        one, other = self.member(1), self.member(2)
        answers = [
            one.ask(type="signal", chat_id=10, kind="typing", data=None, id=number) for number in range(5)
        ]
        self.assertEqual([answer.get("retry") for answer in answers[3:]], [True, True])
        self.assertEqual(len(self.heard(other)), 3)

    def test_signals_that_are_refused_count_too(self) -> None:
        one = self.member(1)
        codes = [one.ask(type="signal", chat_id=11, kind="k", data=None, id=1)["code"] for _ in range(4)]
        self.assertEqual(codes, ["forbidden"] * 3 + ["rate_limited"])

    def test_they_are_frames_like_all_others(self) -> None:
        self.world.reload(limits=Limits(frames_per_second=1, frames_burst=4, signals_per_second=0))
        one = self.member(1)
        for _ in range(12):
            one.send(type="signal", chat_id=10, kind="typing", data=None)
        self.assertEqual(one.closed, (4504, "rate limit exceeded"))

    def test_nothing_is_remembered_of_who_is_gone(self) -> None:
        one = self.member(1)
        self.say(one)
        one.leave()
        self.assertEqual((self.world.signals._senders, self.world.signals._chats), ({}, {}))

    def test_zero_is_no_bound(self) -> None:
        self.world.reload(limits=Limits(signals_per_second=0))
        one = self.member(1)
        self.assertEqual({self.say(one) for _ in range(200)}, {"ok"})


class Receivers(Base):
    def test_who_has_not_taken_what_came_before_is_left_out(self) -> None:
        one, slow, other = self.member(1), self.member(2), self.member(3)
        slow.connection.blocked = True
        one.send(type="signal", chat_id=10, kind="a", data=None)
        self.assertEqual((self.heard(slow), self.heard(other)), ([], ["a"]))
        self.assertEqual(self.dropped("slow"), 1)
        slow.connection.blocked = False
        one.send(type="signal", chat_id=10, kind="b", data=None)
        self.assertEqual(self.heard(slow), ["b"])

    def test_who_is_on_its_way_in_is_told_nothing_before_its_answer(self) -> None:
        one, other = self.member(1), self.member(2)
        self.world.publish(ROOM, chat_payload(ROOM, 1))
        self.world.turn()
        [message] = other.take()
        late = self.world.client(3, features=["signals"])
        self.world.authenticator.held = []
        late.send(type="subscribe", chat_id=10, since={"epoch": message["epoch"], "seq": 0})
        one.send(type="signal", chat_id=10, kind="a", data=None)
        self.world.turn()
        self.assertEqual(late.take(), [])
        self.world.authenticator.release()
        self.assertEqual([frame["type"] for frame in late.take()], ["subscribed", "chat_message"])
        one.send(type="signal", chat_id=10, kind="b", data=None)
        self.assertEqual(self.heard(late), ["b"])

    def test_who_waits_for_its_history_is_told_nothing_before_its_answer(self) -> None:
        one, late = self.member(1), self.world.client(3, features=["signals"])
        broker = self.world.broker
        for chat_id, asks in ((10, {"since": {"epoch": broker._epoch, "seq": 0}}), (10, {"id": 2})):
            broker.held = []
            late.send(type="subscribe", chat_id=chat_id, **asks)
            late.send(type="subscribe", chat_id=chat_id, since={"epoch": broker._epoch, "seq": 10**6})
            one.send(type="signal", chat_id=10, kind="a", data=None)
            self.world.turn()
            while broker.held:
                self.assertNotIn("signal", [frame["type"] for frame in late.take()])
                broker.release()
                broker.held = []
            broker.held = None
            types = [frame["type"] for frame in late.take()]
            self.assertNotIn("signal", types)
            one.send(type="signal", chat_id=10, kind="b", data=None)
            self.assertEqual(self.heard(late), ["b"])

    def test_a_subscription_that_is_asked_for_again_is_told_nothing_meanwhile(self) -> None:
        one, other = self.member(1), self.member(2)
        self.world.broker.held = []
        other.send(type="subscribe", chat_id=10, since={"epoch": self.world.broker._epoch, "seq": 5}, id=2)
        self.assertEqual(other.take(), [])
        one.send(type="signal", chat_id=10, kind="a", data=None)
        self.assertEqual(self.heard(other), [])
        self.world.broker.release()
        self.assertEqual([frame["type"] for frame in other.take()], ["subscribed"])
        one.send(type="signal", chat_id=10, kind="b", data=None)
        self.assertEqual(self.heard(other), ["b"])

    def test_who_has_left_hears_nothing_more(self) -> None:
        one, other, gone = self.member(1), self.member(2), self.member(3)
        one.send(type="signal", chat_id=10, kind="a", data=None)
        other.send(type="unsubscribe", chat_id=10)
        gone.leave()
        self.assertEqual((self.heard(other), self.heard(gone)), ([], []))

    def test_the_broker_is_listened_to_while_somebody_with_the_feature_is_there(self) -> None:
        listened = self.world.broker._listened
        without = self.world.client(5)
        without.send(type="subscribe", chat_id=10)
        self.assertEqual(listened, set())
        one, other = self.member(1), self.member(2)
        self.assertEqual(listened, {ROOM})
        one.leave()
        self.assertEqual(listened, {ROOM})
        self.world.dispatcher.lost(ROOM)
        self.assertEqual(other.closed, (4004, "history lost"))
        self.assertEqual(listened, set())

    def test_a_subscription_that_is_ended_hears_nothing_more(self) -> None:
        one, other = self.member(1), self.member(2)
        other.session.bar(10)
        other.take()
        one.send(type="signal", chat_id=10, kind="a", data=None)
        self.assertEqual(self.heard(other), [])
        self.assertEqual(other.ask(type="signal", chat_id=10, kind="k", data=None, id=1)["code"], "forbidden")


class Crowds(Base):
    limits = Limits(signals_fan_out=10)

    def test_what_a_chat_is_sent_costs_as_much_as_it_has_members(self) -> None:
        others = [self.member(number) for number in range(2, 7)]
        for _ in range(8):
            self.world.signals.heard(ROOM, payload())
        # The limit is 10 at once: two signals to five members.
        self.assertEqual(len(self.heard(others[0])), 2)
        self.assertEqual(self.dropped("crowded"), 6)
        self.world.clock.advance(0.5)
        self.world.signals.heard(ROOM, payload())
        self.world.signals.heard(ROOM, payload())
        self.assertEqual(len(self.heard(others[0])), 1)

    def test_another_chat_has_its_own(self) -> None:
        one, other = self.member(2), self.member(3, 11)
        for _ in range(50):
            self.world.signals.heard(ROOM, payload())
        self.world.signals.heard(chat(1, 11), payload(chat(1, 11)))
        self.assertEqual((len(self.heard(one)), len(self.heard(other))), (10, 1))

    def test_the_largest_chat_has_signals_too(self) -> None:
        others = [self.member(number) for number in range(2, 27)]
        self.world.signals.heard(ROOM, payload())
        self.world.signals.heard(ROOM, payload())
        self.assertEqual(len(self.heard(others[24])), 1)
        for seconds, expected in ((1.4, 0), (0.2, 1)):
            self.world.clock.advance(seconds)
            self.world.signals.heard(ROOM, payload())
            self.assertEqual(len(self.heard(others[24])), expected, seconds)

    def test_what_is_collected_in_a_turn_is_bounded(self) -> None:
        self.world.reload(limits=Limits(signals_fan_out=0, signal_size=Size(10_000)))
        one = self.member(2)
        for _ in range(50):
            self.world.signals.heard(ROOM, payload(data="x" * 9_000))
        self.assertEqual(len(self.heard(one)), A_TURN // 9_000 + 1)


class Poison(Base):
    def test_what_anybody_may_have_sent_is_judged(self) -> None:
        one = self.member(1)
        wrong = (
            b"",
            b"[]",
            b"{}",
            b"\xff",
            payload(chat(1, 11)),
            payload(chat(2, 10)),
            payload(kind=""),
            payload(kind="x" * 65),
            payload(user_id="5"),
            payload(data="x" * 2000),
            payload(data="x" * 1023),
            payload().replace(b"null", b"1e999"),
            payload().replace(b"null", b'"\xff"'),
        )
        for each in wrong:
            self.world.signals.heard(ROOM, each)
        self.assertEqual(self.heard(one), [])
        self.assertEqual(self.dropped("poison"), len(wrong))
        self.world.signals.heard(ROOM, payload(data="x" * 1022))
        self.assertEqual(self.heard(one), ["typing"])

    def test_what_is_nested_deeply_is_not_passed_on(self) -> None:
        self.world.reload(limits=Limits(signal_size=Size(100_000)))
        one = self.member(1)
        self.world.signals.heard(ROOM, payload().replace(b"null", b"[" * 20_000 + b"]" * 20_000))
        self.assertEqual((self.heard(one), self.dropped("poison")), ([], 1))

    def test_what_nobody_here_hears_is_not_looked_at(self) -> None:
        self.world.signals.heard(ROOM, b"rubbish")
        self.assertEqual((self.dropped("poison"), self.world.sample("notify_signals_received_total")), (0, 0))

    def test_one_chat_that_fails_does_not_hold_up_another(self) -> None:
        one, other = self.member(1), self.member(2, 11)

        def breaks(frame: bytes) -> None:
            raise RuntimeError("broken")

        one.connection.write = breaks  # type: ignore[method-assign]
        self.world.signals.heard(ROOM, payload())
        self.world.signals.heard(chat(1, 11), payload(chat(1, 11)))
        self.assertEqual(self.heard(other), ["typing"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class Encoded(SynchronousTestCase):
    """Each kind of receiver gets its encoding, and has each signal encoded once."""

    def test_all_encodings_say_the_same(self) -> None:
        world = World()
        made = {
            name: FakeConnection(2, id=name, encoding=featured(encoding(name), frozenset(("signals",))))
            for name in ("notify.v1.json", "notify.v1.json.batch", "notify.v1.protobuf")
        }
        for connection in made.values():
            world.signals.join(connection, ROOM)
        for kind in ("typing", "cursor"):
            world.signals.heard(ROOM, payload(kind=kind, user_id="u-1", data={"x": 1}))
        world.turn()
        expected = [
            {"type": "signal", "chat_id": 10, "user_id": "u-1", "kind": kind, "data": {"x": 1}}
            for kind in ("typing", "cursor")
        ]
        self.assertEqual(made["notify.v1.json"].take(), expected)
        self.assertEqual(made["notify.v1.json.batch"].take(), [expected])
        [frame] = made["notify.v1.protobuf"].frames
        found = [message.signal for message in pb.ServerFrame.FromString(frame).messages]
        self.assertEqual(
            [(one.chat_id, one.user_id_text, one.user_id, one.kind, one.data) for one in found],
            [(10, "u-1", 0, kind, b'{"x":1}') for kind in ("typing", "cursor")],
        )

    def test_a_protobuf_client_sends_them(self) -> None:
        world = World()
        other = world.client(2, features=["signals"])
        other.send(type="subscribe", chat_id="c-1")
        one = world.connect()
        one.connection.encoding = encoding("notify.v1.protobuf")
        world.authenticator.tokens["t"] = _identity("u-1")
        frame = pb.ClientFrame()
        frame.messages.add(auth=pb.Auth(token="t", features=["signals"]))
        frame.messages.add(subscribe=pb.Subscribe(chat_id_text="c-1"))
        frame.messages.add(id=4, signal=pb.SignalRequest(chat_id_text="c-1", kind="typing", data=b"[1, 2]"))
        one.raw(frame.SerializeToString())
        world.turn()
        [signal] = other.take()
        self.assertEqual((signal["user_id"], signal["data"], signal["kind"]), ("u-1", [1, 2], "typing"))
        for wrong in (
            pb.SignalRequest(chat_id_text="c-1", kind="typing"),
            pb.SignalRequest(chat_id_text="c-1", data=b"1"),
            pb.SignalRequest(chat_id_text="c-1", kind="x" * 65, data=b"1"),
            pb.SignalRequest(chat_id_text="c-1", kind="k", data=b"\xff"),
            pb.SignalRequest(chat_id_text="c-1", kind="k", data=b"1 2"),
            pb.SignalRequest(chat_id_text="c-1", kind="k", data=b"1e999"),
        ):
            one.connection.frames.clear()
            one.raw(pb.ClientFrame(messages=[pb.ClientMessage(id=5, signal=wrong)]).SerializeToString())
            [answer] = pb.ServerFrame.FromString(one.connection.frames[0]).messages
            self.assertEqual((answer.error.code, answer.id), ("invalid_message", 5), wrong)
        world.turn()
        self.assertEqual(other.take(), [])

    def test_one_kind_of_receiver_has_each_signal_encoded_once(self) -> None:
        world = World()
        made = featured(encoding("notify.v1.json"), frozenset(("signals",)))
        counting = made.featured(made.features)
        encoded: list[Any] = []
        encode = counting.encode
        counting.encode = lambda frame: encoded.append(frame) or encode(frame)  # type: ignore[func-returns-value,method-assign]
        for number in range(20):
            world.signals.join(FakeConnection(number, id=str(number), encoding=counting), ROOM)
        world.signals.heard(ROOM, payload(user_id=3))
        world.signals.heard(ROOM, payload(user_id=4))
        world.turn()
        self.assertEqual(len(encoded), 2)


class Buckets(SynchronousTestCase):
    def test_a_clock_that_was_set_back_earns_nothing(self) -> None:
        bucket = Bucket(5, 100.0)
        bucket.spend(5)
        self.assertEqual(bucket.left(1, 5, 50.0), 0)
        self.assertEqual(bucket.left(1, 5, 52.0), 2)


class NoSignals(SynchronousTestCase):
    def test_without_anybody_who_was_granted_them_there_is_nothing_of_them(self) -> None:
        world = World()
        for number in range(3):
            world.client(number).send(type="subscribe", chat_id=10)
        self.assertEqual((world.signals._chats, world.broker._listened), ({}, set()))

    def test_who_joins_needs_the_feature(self) -> None:
        live = Live(InForce(TableAuthenticator()))
        signals = Signals(None, Metrics(), live, lambda call: None, lambda: 0.0)
        signals.join(FakeConnection(1), ROOM)
        self.assertEqual(signals._chats, {})
