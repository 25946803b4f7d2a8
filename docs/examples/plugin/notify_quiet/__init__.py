"""A broker that keeps quiet at night: it stores messages as ever, and follows nothing new after hours."""

from datetime import UTC, datetime
from typing import Annotated

from msgspec import Meta
from twisted.internet.defer import fail
from twisted.logger import Logger
from zope.interface import implementer

from notify.brokers.memory import MemoryBroker, MemorySettings
from notify.errors import Unavailable
from notify.interfaces import IBroker

log = Logger()

Hour = Annotated[int, Meta(ge=0, le=23)]


class QuietSettings(MemorySettings, frozen=True):
    """``[broker.quiet]``: what ``[broker.memory]`` takes, and the quiet hours (UTC)."""

    from_hour: Hour = 23
    to_hour: Hour = 7


@implementer(IBroker)
class QuietBroker(MemoryBroker):
    """See :class:`notify.interfaces.IBroker`."""

    Settings = QuietSettings

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self._hours = settings.from_hour, settings.to_hour
        self._clock = context.reactor.seconds
        log.info("quiet from {start} to {end}", start=settings.from_hour, end=settings.to_hour)

    def quiet(self, hour):
        """Whether this hour of the day is a quiet one."""
        start, end = self._hours
        return start <= hour or hour < end if start > end else start <= hour < end

    def follow(self, topic):
        """See :class:`notify.interfaces.IBroker`; nothing new is followed in the quiet hours."""
        if self.quiet(datetime.fromtimestamp(self._clock(), UTC).hour):
            return fail(Unavailable("quiet hours"))
        return super().follow(topic)
