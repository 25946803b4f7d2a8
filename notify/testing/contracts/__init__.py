"""The contract of each interface, as test suites that every implementation subclasses together with a ``TestCase``."""

from notify.testing.contracts.atomic import AtomicContract
from notify.testing.contracts.authenticator import AuthenticatorContract
from notify.testing.contracts.broker import BrokerContract
from notify.testing.contracts.control import ControlContract
from notify.testing.contracts.ids import TextIds
from notify.testing.contracts.registry import RegistryContract
from notify.testing.contracts.signals import SignalsContract

__all__ = [
    "AtomicContract",
    "AuthenticatorContract",
    "BrokerContract",
    "ControlContract",
    "RegistryContract",
    "SignalsContract",
    "TextIds",
]
