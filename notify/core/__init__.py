"""Decides who gets what, and in which order: sessions, dispatcher, presence. Knows no socket and no reactor."""
