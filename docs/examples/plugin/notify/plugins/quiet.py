"""What notify finds: a name and where the implementation is. Nothing heavy is imported here."""

from notify.components import Plugin

quiet = Plugin("broker", "quiet", "notify_quiet:QuietBroker")
