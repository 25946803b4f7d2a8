"""The modules of the client's state machine. None of them knows the machine, a socket, a clock or its neighbours.

What they ask for they hand to ``do``, which appends to the machine's actions. ``now`` is the machine's.
"""
