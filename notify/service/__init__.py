"""The process: start, readiness, reload, drain, stop, and notifications to systemd."""
