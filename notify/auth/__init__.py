"""Authenticators: who is at the other end, and what may they receive?

``jwt`` verifies tokens by itself; ``webhook`` asks a backend. Under them: ``keys`` (which key may verify which
algorithm), ``jws`` (the token's form and signature), ``claims`` (what it says), ``jwks`` (where keys come from and
how they rotate), ``http`` (a bounded HTTP client), ``sharing`` (one question for many askers, and remembered
answers).
"""
