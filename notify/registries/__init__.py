"""Registries: who is in which topic, here and on all nodes."""
