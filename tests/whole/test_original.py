"""A client of the original protocol, with integer ids, receives byte for byte what it received before."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from notify.wire.encodings import SUBPROTOCOLS
from tests.support.programs import ROOT
from tests.whole.original import play, script

RECORDED = json.loads((ROOT / "tests" / "conformance" / "original.json").read_text())


class Original(SynchronousTestCase):
    def test_every_byte_is_as_it_was_recorded(self) -> None:
        self.assertEqual(set(RECORDED), set(SUBPROTOCOLS))
        for name in SUBPROTOCOLS:
            for step, before, now in zip(script(), RECORDED[name], play(name), strict=True):
                self.assertEqual(
                    [bytes.fromhex(frame) for frame in now],
                    [bytes.fromhex(frame) for frame in before],
                    (name, step),
                )
