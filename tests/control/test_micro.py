"""What NATS's tools are told about a service."""

import json

from twisted.trial.unittest import SynchronousTestCase

from notify.control.micro import Endpoint, Service


class Micro(SynchronousTestCase):
    def setUp(self) -> None:
        self.endpoint = Endpoint("steer", "control.MESSAGES.do.*")
        self.service = Service(
            "notify", "x1", "1.2.3", "about", {"node": "n"}, [self.endpoint], 1_700_000_000.5
        )

    def told(self, verb: str) -> dict[str, object]:
        told: dict[str, object] = json.loads(self.service.answer(verb))
        self.assertEqual(told.pop("type"), f"io.nats.micro.v1.{verb.lower()}_response")
        who = {key: told.pop(key) for key in ("name", "id", "version", "metadata")}
        self.assertEqual(who, {"name": "notify", "id": "x1", "version": "1.2.3", "metadata": {"node": "n"}})
        return told

    def test_all_instances_those_of_a_name_and_this_one_are_asked_on_subjects_of_their_own(self) -> None:
        self.assertEqual(
            self.service.subjects(),
            {
                "$SRV.PING": "PING",
                "$SRV.PING.notify": "PING",
                "$SRV.PING.notify.x1": "PING",
                "$SRV.INFO": "INFO",
                "$SRV.INFO.notify": "INFO",
                "$SRV.INFO.notify.x1": "INFO",
                "$SRV.STATS": "STATS",
                "$SRV.STATS.notify": "STATS",
                "$SRV.STATS.notify.x1": "STATS",
            },
        )

    def test_a_ping_tells_who_it_is(self) -> None:
        self.assertEqual(self.told("PING"), {})

    def test_info_tells_what_can_be_asked(self) -> None:
        endpoint = {"name": "steer", "subject": "control.MESSAGES.do.*", "queue_group": "", "metadata": {}}
        self.assertEqual(self.told("INFO"), {"description": "about", "endpoints": [endpoint]})

    def test_stats_tell_how_often_it_was(self) -> None:
        def counts() -> tuple[object, ...]:
            stats = self.told("STATS")
            self.assertEqual(stats["started"], "2023-11-14T22:13:20.500000Z")
            [endpoint] = stats["endpoints"]  # type: ignore[misc]
            names = ("requests", "errors")
            return (
                *(endpoint[f"num_{name}"] for name in names),
                *(endpoint[name] for name in ("last_error", "processing_time", "average_processing_time")),
            )

        self.assertEqual(counts(), (0, 0, "", 0, 0))
        self.endpoint.served(1000)
        self.endpoint.served(2001, "it failed")
        self.assertEqual(counts(), (2, 1, "it failed", 3001, 1500))
