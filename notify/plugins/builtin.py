"""The plugins that come with notify."""

from notify.components import Plugin

jwt = Plugin("auth", "jwt", "notify.auth.jwt:JWTAuthenticator")
webhook = Plugin("auth", "webhook", "notify.auth.webhook:WebhookAuthenticator")
memory_broker = Plugin("broker", "memory", "notify.brokers.memory:MemoryBroker")
jetstream = Plugin("broker", "jetstream", "notify.brokers.jetstream:JetStreamBroker")
memory_registry = Plugin("registry", "memory", "notify.registries.memory:MemoryRegistry")
jetstream_kv = Plugin("registry", "jetstream_kv", "notify.registries.jetstream_kv:JetStreamRegistry")
memory_control = Plugin("control", "memory", "notify.control.memory:MemoryControl")
nats_control = Plugin("control", "nats", "notify.control.nats:NATSControl")
