"""The process: start, readiness, reload, drain, stop, and what systemd is told."""
