"""One NATS connection that is always re-established, on which the broker and the registry for NATS are built."""
