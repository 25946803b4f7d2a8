"""Authenticators: who is a client, and what may it receive?

``jwt`` verifies tokens by itself; ``webhook`` asks a backend. They use ``keys`` (which key may verify which algorithm), ``jws``
(a token's format and signature), ``claims`` (its contents), ``jwks`` (the source and rotation of keys), ``http`` (an HTTP client
with limits), and ``sharing`` (shared requests and cached answers).
"""
