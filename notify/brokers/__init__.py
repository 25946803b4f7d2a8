"""Brokers: accept, keep and deliver messages."""
