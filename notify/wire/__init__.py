"""Converts between bytes and values: the protocol's frames, one encoding for each subprotocol.

Pure: no socket, no clock, no state between calls.
"""
