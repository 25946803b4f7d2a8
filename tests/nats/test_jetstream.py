"""What JetStream is told of streams, and what is made of its answers; without a server."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from notify.nats.jetstream import covers, differences


class Streams(SynchronousTestCase):
    def test_which_patterns_cover_which(self) -> None:
        for pattern, subject in (("a.>", "a.b"), ("a.*", "a.b"), ("a.*.c", "a.*.c"), (">", "a.*")):
            self.assertTrue(covers(pattern, subject), (pattern, subject))
        for pattern, subject in (
            ("a.>", "a"),
            ("a.b", "a.*"),
            ("a.*", "a.>"),
            ("a.*", "a.b.c"),
            ("a.b.c", "a.b"),
        ):
            self.assertFalse(covers(pattern, subject), (pattern, subject))

    def test_what_differs_is_named_with_both_values(self) -> None:
        asked = {"subjects": ["b", "a"], "max_age": 5, "republish": {"src": ">", "dest": "live.x.>"}}
        have = {"subjects": ["a", "b"], "max_age": 5, "republish": {"dest": "live.x.>"}, "storage": "file"}
        self.assertEqual(differences(asked, have), [])
        self.assertEqual(differences(asked, have | {"max_age": 6}), ["max_age is 6, not 5"])
        self.assertEqual(len(differences(asked, {})), 3)
