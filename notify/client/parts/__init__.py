"""The modules of the client's state machine. None of them knows the machine, a socket, a clock or the other modules.

They request actions by calling ``do``, which appends to the machine's actions. ``now`` is the machine's time.
"""
