"""The composition root: after a reload, every part concerned obeys the new settings."""

from __future__ import annotations

import sys
from io import StringIO
from ipaddress import ip_network
from typing import Any

from msgspec import structs
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from notify.config import Api, Config, Drain, Duration, Limits, Listen, Log, PluginTable, Server
from notify.core.live import InForce
from notify.errors import StartError
from notify.http.answers import Refused
from notify.observe import logging
from notify.service.reload import LIVE
from notify.tap import Options, build, in_force, makeService
from notify.testing import make_context

OLD, NEW = "an-old-key-of-the-api", "a-new-key-of-the-api"
JWT = {"secret": "0123456789abcdef0123456789abcdef"}
BEFORE = Config(auth=PluginTable("jwt", {"jwt": JWT}), api=Api((OLD,)))

#: for each key that is applied live: a configuration that changes it, and the field of ``InForce`` that then differs
CHANGES: dict[str, tuple[Config, str]] = {
    "auth": (
        structs.replace(BEFORE, auth=PluginTable("jwt", {"jwt": {**JWT, "leeway": 1}})),
        "authenticator",
    ),
    "api": (structs.replace(BEFORE, api=Api((NEW,))), "keys"),
    "drain": (structs.replace(BEFORE, drain=Drain(Duration(1))), "drain"),
    "limits": (structs.replace(BEFORE, limits=Limits(handshake_timeout=Duration(9))), "limits"),
    "log": (structs.replace(BEFORE, log=Log("debug")), "log"),
    "listen.allowed_origins": (
        structs.replace(BEFORE, listen=Listen(allowed_origins=("https://a",))),
        "allowed_origins",
    ),
    "listen.trusted_proxies": (
        structs.replace(BEFORE, listen=Listen(trusted_proxies=("10.0.0.0/8",))),
        "trusted",
    ),
}


class WhatIsInForce(SynchronousTestCase):
    def test_it_is_made_of_the_keys_that_are_applied_live_and_of_no_other(self) -> None:
        self.assertEqual(set(CHANGES), LIVE)
        self.assertEqual(
            {field for _, field in CHANGES.values()}, {field.name for field in structs.fields(InForce)}
        )
        context = make_context()
        before = structs.asdict(in_force(context, BEFORE))
        for config, changed in CHANGES.values():
            now = structs.asdict(in_force(context, config))
            # Each call makes a new authenticator.
            self.assertEqual(
                {name for name in now if now[name] != before[name]}, {changed, "authenticator"}, changed
            )

    def test_a_token_may_be_as_old_as_what_is_revoked_can_be_kept(self) -> None:
        for age, good in ((59, False), (60, True), (366 * 86400, True), (367 * 86400, False)):
            config = structs.replace(BEFORE, limits=Limits(token_age=Duration(age)))
            if good:
                in_force(make_context(), config)
            else:
                error = self.assertRaises(StartError, in_force, make_context(), config)
                self.assertIn("'limits.token_age' is wrong: it must be from a minute to a year", str(error))


class Workers(SynchronousTestCase):
    def test_to_try_it_out_there_is_one_process(self) -> None:
        options = Options()
        options["dev"], options.config = True, Config(server=Server(workers=2))
        said = StringIO()
        self.patch(sys, "__stderr__", said)
        self.assertRaises(SystemExit, makeService, options)
        self.assertEqual(
            said.getvalue(), "notify: --dev runs one process only: leave out [server] workers.\n"
        )


class Reloads(SynchronousTestCase):
    def test_everyone_obeys_what_is_in_force(self) -> None:
        logged: list[Log] = []
        self.patch(logging, "configure", logged.append)
        after = Config(
            auth=BEFORE.auth,
            api=Api((NEW,)),
            drain=Drain(Duration(1)),
            limits=Limits(handshake_timeout=Duration(9)),
            log=Log("debug"),
            listen=Listen(allowed_origins=("https://a",), trusted_proxies=("10.0.0.0/8",)),
        )
        service = build(BEFORE, Clock(), read=lambda: after)
        front: Any = service.public.factory
        site: Any = service.internal.factory
        websockets, pages = front.websocket, front.site
        authenticator = websockets.hub.live.now.authenticator
        self.assertEqual((front.patience(), pages.patience()), (5, 5))
        site.keys.check(f"Bearer {OLD}".encode())
        service.reloader.reload()
        self.assertEqual((front.patience(), pages.patience()), (9, 9))
        site.keys.check(f"Bearer {NEW}".encode())
        self.assertRaises(Refused, site.keys.check, f"Bearer {OLD}".encode())
        self.assertEqual(websockets.allowed_origins, ("https://a",))
        self.assertEqual(websockets.trusted, (ip_network("10.0.0.0/8"),))
        self.assertIsNot(websockets.hub.live.now.authenticator, authenticator)
        self.assertEqual(service.reloader.config.drain, after.drain)
        self.assertEqual(logged, [after.log])
