"""A soak test: real clients of both libraries and a real server, with a proxy between them that injects faults."""
