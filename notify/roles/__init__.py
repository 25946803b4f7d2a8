"""What each process of a server does: ``role`` for a server of one process, ``head`` for the first of several,
``worker`` for the others.

The composition root (:mod:`notify.tap`) builds the same parts in all three cases, except where the role differs.
"""
