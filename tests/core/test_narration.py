"""Why a user gets nothing: each refusal is a log line of ``notify.clients`` with connection and user, and a counter."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from notify.config import Limits
from notify.observe import logging
from tests.support.world import World


class Refusals(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(logging, "takes_debug", lambda namespace: True)

    def line(self, about: str, act: Callable[[], object]) -> str:
        """The one log line with the text ``about`` that ``act`` causes."""
        with capturedLogs() as events:
            act()
        [line] = [text for text in map(formatEvent, events) if text and about in text]
        self.assertNotIn("secret", line)
        return line

    def test_a_chat_beyond_the_number_that_one_may_have(self) -> None:
        world = World(Limits(max_subscriptions=1))
        client = world.client(user_id=7)
        client.send(type="subscribe", chat_id=1, id=1)
        line = self.line("does not get", lambda: client.send(type="subscribe", chat_id=2, id=2))
        self.assertEqual(
            line, f"{client.connection.id} of user 7 has as many chats as it may, and does not get chat 2"
        )
        self.assertEqual(world.sample("notify_errors_total", code="too_many_subscriptions"), 1)

    def test_a_chat_whose_members_are_not_to_be_seen_and_one_that_is_not_to_be_had(self) -> None:
        world = World()
        world.authenticator.forbidden = {2}
        client = world.client(user_id=7)
        for frame, said in (
            ("presence", "may not see who is in chat 2"),
            ("subscribe", "may not have chat 2"),
        ):
            line = self.line("may not", lambda frame=frame: client.send(type=frame, chat_id=2, id=1))
            self.assertEqual(line, f"{client.connection.id} of user 7 {said}")
        self.assertEqual(world.sample("notify_errors_total", code="forbidden"), 2)

    def test_one_connection_more_than_a_user_may_have(self) -> None:
        world = World(Limits(max_connections_per_user=1))
        world.client(user_id=7)
        line = self.line("is sent away", lambda: world.client(user_id=7))
        self.assertIn("user 7 of workspace 1 has as many connections as one may", line)
        self.assertEqual(world.sample("notify_auth_total", result="full"), 1)

    def test_one_client_more_on_its_way_in_than_there_is_room_for(self) -> None:
        world = World(Limits(max_arriving=1))
        world.connect()
        line = self.line("is sent away", world.connect)
        self.assertIn("from 127.0.0.1 is sent away: too many clients are on their way in", line)

    def test_a_token_that_has_expired(self) -> None:
        world = World()
        line = self.line("is refused", lambda: world.client(expires_in=0))
        self.assertIn("from 127.0.0.1 is refused: the token has expired", line)
        self.assertEqual(world.sample("notify_auth_total", result="refused"), 1)
