"""The ledger of a run becomes a verdict, figures, a text, JSON and a page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from notify.chaos import report
from notify.chaos.ledger import Ledger
from notify.chaos.page import page
from notify.chaos.plan import Fault
from notify.chaos.plot import timeline
from notify.chaos.report import Happened, Report
from notify.client import Position
from notify.topics import chat

TOPIC = chat(1, 1)
CUT = Happened(Fault(4, "cut <clients>"), 4, 4)


class Case(SynchronousTestCase):
    """A load of ten seconds from time 100 on, one message a second; at 4 s both clients were cut, one of them for 2 s."""

    def setUp(self) -> None:
        self.ledger = Ledger("run")
        self.clients = [self.ledger.hold(f"client-{index}", TOPIC) for index in (1, 2)]
        for held in self.clients:
            held.whole = True
            self.ledger.came.append((99.0, held.client))
        for number in range(1, 11):
            one = self.ledger.send(TOPIC, 100 + number - 0.5)
            one.outcome, one.settled = "acknowledged", one.at + 0.01
            one.position = Position("a", number)
            for held in self.clients:
                cut = held is self.clients[0] and number in (5, 6)
                self.receive(held.client, number, 106.1 if cut else one.at + 0.02)
        self.ledger.left += [(104.25, "client-1", 1006), (104.1, "client-2", 0)]
        self.ledger.came += [(106.0, "client-1"), (104.2, "client-2")]

    def receive(self, client: str, number: int, at: float) -> None:
        held = next(held for held in self.clients if held.client == client)
        self.ledger.receive(held, self.ledger.text(TOPIC, number), at)

    def make(self, *happened: Happened) -> Report:
        return report.make(
            self.ledger,
            happened or (CUT,),
            target="A set",
            seed=7,
            began=100.0,
            seconds=10.0,
            ended=112.0,
        )


class Made(Case):
    def test_held(self) -> None:
        found = self.make()
        self.assertEqual((found.verdict, found.doubts, report.STATUS[found.verdict]), ("held", [], 0))
        self.assertEqual((found.counts.acknowledged, found.counts.delivered, found.counts.lost), (10, 20, 0))
        self.assertEqual((found.clients, found.topics, found.reconnects), (2, 1, 2))
        self.assertEqual(found.closes, {"1006": 1, "none": 1})

    def test_noticed_and_caught_up(self) -> None:
        [row] = self.make().faults
        self.assertEqual((row.hit, row.error), (2, ""))
        self.assertAlmostEqual(row.noticed or 0, 0.25)
        self.assertAlmostEqual(row.caught_up or 0, 2.1)

    def test_catching_up_is_counted_from_the_end_of_the_fault_and_takes_all_that_there_was(self) -> None:
        [row] = self.make(Happened(Fault(4, "kill", 5.9, "start"), 4, 5.9)).faults
        self.assertAlmostEqual(row.caught_up or 0, 0.2)

    def test_a_client_that_waits_while_it_is_connected_has_not_caught_up(self) -> None:
        self.ledger.left.clear()
        [row] = self.make(Happened(Fault(4, "silence"), 4, 4)).faults
        self.assertEqual((row.hit, row.noticed), (0, None))
        self.assertAlmostEqual(row.caught_up or 0, 2.1)

    def test_one_that_never_comes_back_has_never_caught_up(self) -> None:
        del self.ledger.came[-2]
        self.assertIsNone(self.make().faults[0].caught_up)

    def test_a_fault_that_nobody_noticed(self) -> None:
        first, second = self.make(Happened(Fault(1, "pause"), 1, 2), CUT).faults
        self.assertEqual((first.hit, first.noticed, first.caught_up, second.hit), (0, None, 0.0, 2))

    def test_broken(self) -> None:
        self.receive("client-1", 3, 111.0)
        found = self.make()
        self.assertEqual((found.verdict, report.STATUS[found.verdict]), ("broken", 1))
        self.assertEqual(
            [(wrong.what, wrong.number, wrong.at) for wrong in found.wrongs], [("doubled", 3, 11.0)]
        )
        self.assertIn("Broken: of 10 messages and 21 deliveries, 1 doubled.", report.text(found))

    def test_each_kind_breaks_it(self) -> None:
        self.clients[1].got.pop(3)
        self.ledger.intrude("client-1", "workspace.2.chat.1.messages", 1, 103.0)
        self.clients[0].got[7:9] = reversed(self.clients[0].got[7:9])
        counts = self.make().counts
        self.assertEqual((counts.lost, counts.foreign, counts.disordered, counts.doubled), (1, 1, 1, 0))

    def test_unproven(self) -> None:
        for change in (
            lambda: self.ledger.ended.update({"client-1": "closed with 4503"}),
            lambda: setattr(self.clients[0], "whole", False),
            lambda: setattr(CUT, "error", "its command ended with status 1"),
        ):
            self.setUp()
            self.patch(CUT, "error", "")
            change()
            found = self.make()
            self.assertEqual(
                (found.verdict, report.STATUS[found.verdict], len(found.doubts)), ("unproven", 2, 1)
            )
            self.assertIn(found.doubts[0], report.text(found))

    def test_nothing_shows_nothing(self) -> None:
        self.ledger = Ledger("run")
        self.assertEqual(self.make().doubts, ["no message was acknowledged"])

    def test_slices_hold_all_of_it(self) -> None:
        slices = self.make().slices
        self.assertEqual(sum(one.delivered for one in slices), 20)
        self.assertEqual(sum(one.acknowledged for one in slices), 10)
        self.assertAlmostEqual(max(one.worst for one in slices), 106.1 - 104.5)
        self.assertEqual(
            [one.connected for one in slices][:1] + [one.connected for one in slices][-1:], [2, 2]
        )
        self.assertIn(1, [one.connected for one in slices])


class Shown(Case):
    def test_text_has_the_verdict_first_and_how_to_repeat_it(self) -> None:
        lines = report.text(self.make()).splitlines()
        self.assertEqual(lines[0], "Held: every message that was acknowledged came once and in order.")
        self.assertIn("--seed 7 --seconds 10s", lines[-1])
        self.assertTrue(
            any(re.search(r"0\.25 s +2\.10 s +2 +at=4s cut <clients>", line) for line in lines), lines
        )

    def test_json_comes_back(self) -> None:
        found = self.make()
        self.assertEqual(msgspec.json.decode(msgspec.json.encode(found), type=Report), found)

    def test_the_plot_is_well_formed_and_marks_the_faults(self) -> None:
        found = self.make()
        root = ElementTree.fromstring(timeline(found))
        titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
        self.assertIn("at=4s cut <clients>", titles)
        classes = [element.get("class") for element in root.iter()]
        self.assertTrue({"fault", "after", "median", "area", "connected"} <= set(classes), classes)
        self.assertNotIn("wrong", classes)
        numbers = [float(number) for number in re.findall(r'\b[xy][12]?="([^"]+)"', timeline(found))]
        self.assertTrue(all(0 <= number <= 960 for number in numbers))

    def test_the_plot_marks_where_it_broke(self) -> None:
        self.receive("client-1", 3, 111.0)
        self.assertIn('class="wrong"', timeline(self.make()))

    def test_the_plot_of_nothing(self) -> None:
        self.ledger = Ledger("run")
        found = self.make()
        ElementTree.fromstring(timeline(msgspec.structs.replace(found, slices=[], ended=0.0)))

    def test_the_page_needs_nothing_beside_itself(self) -> None:
        self.ledger.intrude("client-1", "<script>", 1, 103.0)
        text = page(self.make())
        self.assertIn("Broken:", text)
        self.assertEqual(text.count('<dd class="broken">'), 1)
        self.assertNotIn("<script", text)
        self.assertIn("cut &lt;clients&gt;", text)
        self.assertEqual(re.findall(r'(?:src|href)="|url\(|@import', text), [])
