"""The memory registry runs the contract of all registries."""

from twisted.trial.unittest import TestCase

from notify.interfaces import IRegistry
from notify.registries.memory import MemoryRegistry, MemorySettings
from notify.testing import make_context
from notify.testing.contracts import RegistryContract, TextIds


class MemoryRegistryContract(RegistryContract, TestCase):
    async def make_registry(self) -> IRegistry:
        return MemoryRegistry(MemorySettings(), make_context())


class MemoryRegistryWithTextIds(TextIds, MemoryRegistryContract):
    pass
