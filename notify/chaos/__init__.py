"""``notify chaos``: faults under load, and whether every message came once, in order, or was told to be lost.

``plan``, ``ledger``, ``report``, ``plot`` and ``page`` are pure; ``trial`` runs one, against a ``deployment`` of
the operator's or against the servers that ``local`` starts on this machine.
"""
