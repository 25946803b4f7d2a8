"""Controls: how all nodes are told to do something at the word of one of them.

``memory`` is one process alone; ``nats`` reaches every node over NATS, as a service that ``nats micro`` sees, too
(``micro``). What may be asked, and what a node does then, is :mod:`notify.core.steering`.
"""
