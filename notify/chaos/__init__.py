"""``notify chaos``: faults under load, and a check that every message was delivered once, in order, or reported as lost.

``plan``, ``ledger``, ``report``, ``plot`` and ``page`` are pure. ``trial`` runs one trial, against the operator's ``deployment``
or against the servers that ``local`` starts on this machine.
"""
