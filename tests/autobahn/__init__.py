"""The Autobahn test cases against our own listener, transport, reader and deflate."""
