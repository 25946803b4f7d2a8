"""Controls: how one node tells all nodes to do something.

``memory`` is for a single process. ``nats`` reaches every node over NATS, and is also visible as a service to ``nats micro``
(``micro``). :mod:`notify.core.steering` defines the commands and how a node carries them out.
"""
