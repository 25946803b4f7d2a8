"""Defences that docs/security.md names, taken away one after the other."""
