from collections.abc import Mapping

from notify.interfaces import IConnection
from notify.transport.connection import Connection
from notify.wire.frames import Encoding

class FanOut:
    def __new__(cls, connection: type[Connection], /) -> FanOut: ...
    def __call__(self, connections: list[IConnection], frames: Mapping[Encoding, bytes], /) -> None: ...
