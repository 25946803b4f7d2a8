"""Removes, one after another, the defences that docs/security.md names."""
