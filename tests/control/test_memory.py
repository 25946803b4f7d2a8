"""The control of one process alone."""

from twisted.trial.unittest import TestCase

from notify.control.memory import MemoryControl, MemorySettings
from notify.interfaces import IControl
from notify.testing import make_context
from notify.testing.contracts import ControlContract


class Contract(ControlContract, TestCase):
    async def make_control(self, node: str) -> IControl:
        return MemoryControl(MemorySettings(), make_context(node=node))
