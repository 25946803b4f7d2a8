"""Which part of a server a process is: all of it, the first of several, or a worker that serves clients.

``role`` is what one process does that is all there is, ``head`` what the first of several does instead, ``worker`` what the
others do. The composition root (:mod:`notify.tap`) makes the same of all three, but for what these say.
"""
