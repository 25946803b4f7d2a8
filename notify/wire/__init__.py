"""Bytes ⇄ values: the frames of the protocol, one encoding a subprotocol. Pure: no socket, no clock, no state between calls."""
