"""The Autobahn test cases against notify's own listener, transport, reader and deflate."""
