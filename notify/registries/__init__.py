"""Registries: who is in which topic, on this node and on all nodes."""
