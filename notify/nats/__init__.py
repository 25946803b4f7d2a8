"""One NATS connection that is there again whatever ended it; what the broker and the registry on NATS stand on."""
