"""Each worker's share of limits that apply to all clients together, and how a worker gets its configuration."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from notify import components, config
from notify.config import Config, Limits, Server, Size, dumps, load, loads
from notify.transport.admission import most, reserve
from notify.workers import limits


class Shares(SynchronousTestCase):
    def test_what_is_for_all_together_is_divided_and_rounded_up(self) -> None:
        whole = Config(limits=Limits(max_arriving=10, send_queues=Size(100), recent_messages=3001))
        mine = limits.shared(whole, 3).limits
        self.assertEqual((mine.max_arriving, mine.send_queues, mine.recent_messages), (4, 34, 1001))
        self.assertEqual(mine.recent_bytes, -(-Limits().recent_bytes // 3))
        # Each worker has a part of a chat's members.
        self.assertEqual(mine.signals_fan_out, -(-Limits().signals_fan_out // 3))
        # Limits per client, limits that the first process applies, and absent limits stay the same.
        self.assertEqual((mine.send_queue, mine.replay), (Limits().send_queue, Limits().replay))
        self.assertEqual(mine.max_connections, whole.limits.max_connections)
        self.assertEqual(limits.shared(Config(limits=Limits(max_arriving=0)), 3).limits.max_arriving, 0)
        self.assertEqual(
            limits.shared(Config(limits=Limits(recent_messages=1000)), 4).limits.recent_messages, 1000
        )

    def test_files_of_all_workers_are_as_many_as_each_has_for_clients(self) -> None:
        for files in (1024, 524288):
            for workers in (1, 2, 8):
                each = most(Limits(), files)
                self.assertEqual(most(Limits(), limits.files(workers, files, reserve(files))), workers * each)

    def test_how_many(self) -> None:
        self.assertEqual(limits.count(3), 3)
        self.assertEqual(limits.count("auto"), len(os.sched_getaffinity(0)))

    def test_a_name_is_never_too_long(self) -> None:
        self.assertEqual(limits.name("node", 12), "node-w12")
        long = limits.name("n" * 60 + "-" * 4, 2)
        self.assertEqual(long, "n" * 60 + "-w2")
        self.assertEqual(len(limits.name("n" * 64, 12)), 64)


class Configuration(SynchronousTestCase):
    def test_it_comes_out_as_it_went_in(self) -> None:
        path = self.mktemp()
        with open(path, "w") as file:
            file.write(
                '[drain]\nduration = "90s"\n[broker.memory]\nhistory_age = "2h"\n[limits]\nmax_frame = "1MiB"\n'
            )
        environ = {
            "NOTIFY_BROKER__MEMORY__HISTORY_SIZE": "7",
            "NOTIFY_AUTH__JWT__SECRET": "a secret of more than thirty-two bytes",
            "NOTIFY_AUTH__JWT__ALGORITHMS": "HS256,HS384",
            "NOTIFY_SERVER__WORKERS": "auto",
        }
        loaded = load(path, environ)
        again = loads(dumps(loaded))
        self.assertEqual(again, loaded)
        self.assertEqual(again.server, Server(workers="auto"))
        self.assertIsInstance(again.drain.duration, config.Duration)
        self.assertIsInstance(again.limits.max_frame, Size)
        # Values from the environment are still parsed with the type of their key.
        _, settings = components.find("broker", again)
        self.assertEqual((settings.history_size, settings.history_age), (7, 7200))
        _, jwt = components.find("auth", again)
        self.assertEqual(tuple(jwt.algorithms), ("HS256", "HS384"))

    def test_of_several_files_the_one_is_named_that_has_a_key(self) -> None:
        paths = [self.mktemp(), self.mktemp()]
        for path, text in zip(
            paths,
            (
                "[listen]\nallowed_origins = ['https://a.example']\n",
                "[auth.jwt]\nsecret = 'short'\n[limits]\nmax_frame = '1MiB'\n",
            ),
            strict=True,
        ):
            with open(path, "w") as file:
                file.write(text)
        again = loads(dumps(load(paths, {})))
        self.assertEqual(again, load(paths, {}))
        self.assertEqual(again.source, ", ".join(paths))
        for key, path in (("listen.allowed_origins", paths[0]), ("limits.max_frame", paths[1])):
            self.assertEqual(config.having(again.source, key), path)

    def test_how_many_workers_there_may_be(self) -> None:
        for text in ("0", "65", "many", "-1"):
            error = self.assertRaises(config.ConfigError, load, None, {"NOTIFY_SERVER__WORKERS": text})
            self.assertIn("workers", str(error).lower())
