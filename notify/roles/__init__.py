"""The roles of a server's processes.

``role`` is that of a server of one process, ``head`` that of the first of several, ``worker`` that of the others. The
composition root (:mod:`notify.tap`) builds the same parts in all three cases, except where the role differs.
"""
