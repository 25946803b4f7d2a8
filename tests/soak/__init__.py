"""A soak: real clients of both libraries on a real server, through a proxy that makes their life hard."""
