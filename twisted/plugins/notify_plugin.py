"""``twistd notify``."""

from twisted.application.service import ServiceMaker

notify = ServiceMaker("notify", "notify.tap", "A real-time notification server.", "notify")
