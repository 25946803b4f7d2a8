"""Brokers: they accept, store and deliver messages."""
