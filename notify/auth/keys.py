"""Keys that verify tokens, each bound to the algorithms for which it may be used.

A key is prepared once, when it is read. A token's header can only choose among the algorithms that the key itself allows (RFC 8725,
section 3.1), so that a public key is never used as an HMAC secret.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWS
from jwt.algorithms import Algorithm
from jwt.exceptions import PyJWTError
from msgspec import Struct

_HASH_BYTES = {"256": 32, "384": 48, "512": 64}
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_KEY_TYPES = {"HS": "oct", "RS": "RSA", "ES": "EC", "EdDSA": "OKP"}
_RSA_BITS = 2048  # RFC 7518, section 3.3
_MOST_KEYS = 100
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)

#: every algorithm that can be configured, and its family; keys of one family are never used for another
FAMILIES: dict[str, str] = {
    **{family + bits: family for family in ("HS", "RS", "ES") for bits in _HASH_BYTES},
    "EdDSA": "EdDSA",
}

_jws = PyJWS()
_ALGORITHMS: dict[str, Algorithm] = {name: _jws.get_algorithm_by_name(name) for name in FAMILIES}


class UnusableKey(ValueError):  # noqa: N818
    """A key that cannot verify tokens here. The message says why, without quoting the key."""


class Key(Struct, frozen=True):
    """One prepared key. ``id`` is its ``kid`` if it has one; ``algorithms`` are the only ones that it may verify."""

    id: str | None
    algorithms: frozenset[str]
    material: Any

    def verify(self, algorithm: str, message: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is this key's signature of ``message``. Also false for an algorithm that the key does not allow."""
        return algorithm in self.algorithms and _ALGORITHMS[algorithm].verify(
            message, self.material, signature
        )


class Keys:
    """The keys that are valid at one time."""

    def __init__(self, keys: list[Key]) -> None:
        self.all = keys

    def candidates(self, key_id: str | None, algorithm: str) -> list[Key]:
        """The keys that may have signed a token with this ``kid`` (None: it has none) and ``alg``.

        A key without an id may have signed any token whose ``kid`` belongs to no other key.
        """
        fitting = [key for key in self.all if algorithm in key.algorithms]
        if key_id is None:
            return fitting
        return [key for key in fitting if key.id == key_id] or [key for key in fitting if key.id is None]


def secret_key(secret: bytes, algorithms: frozenset[str], id: str | None = None) -> Key:
    """The key for an HMAC secret, which must be at least as long as the hash of every algorithm (RFC 7518, section 3.2).

    Raises :class:`UnusableKey`, also if the secret is a public key or a JWK, which would not be secret.
    """
    for algorithm in sorted(algorithms, reverse=True):
        if len(secret) < (least := _HASH_BYTES[algorithm[2:]]):
            raise UnusableKey(
                f"is {len(secret)} bytes long and {algorithm} needs at least {least}; "
                "`openssl rand -base64 64` prints a good one"
            )
    try:
        material = _ALGORITHMS["HS256"].prepare_key(secret)
    except PyJWTError:
        raise UnusableKey("is a public or structured key, not a secret") from None
    return Key(id, algorithms, material)


def _public_key(material: object, algorithms: frozenset[str], id: str | None = None) -> Key:
    """Bind a public key to those of ``algorithms`` that fit its type. Raises :class:`UnusableKey`."""
    match material:
        case RSAPublicKey():
            kind, fitting = "an RSA key", {"RS256", "RS384", "RS512"}
            if material.key_size < _RSA_BITS:
                raise UnusableKey(f"has {material.key_size} bits and RSA needs at least {_RSA_BITS}")
        case EllipticCurvePublicKey():
            kind = f"a key on the curve {material.curve.name}"
            fitting = {_CURVES[material.curve.name]} if material.curve.name in _CURVES else set()
        case Ed25519PublicKey() | Ed448PublicKey():
            kind, fitting = "an EdDSA key", {"EdDSA"}
        case _:
            raise UnusableKey("is of a kind that no algorithm here uses")
    if not algorithms & fitting:
        raise UnusableKey(f"is {kind}, which {' and '.join(sorted(algorithms))} cannot use")
    return Key(id, algorithms & fitting, material)


def pem_keys(data: bytes, algorithms: frozenset[str]) -> Keys:
    """The public keys in PEM text, of which there may be several during a rotation. Raises :class:`UnusableKey`."""
    keys = []
    for block in _PEM.finditer(data):
        if b"PRIVATE" in block[1]:
            raise UnusableKey("holds a private key, which belongs on no server that only verifies")
        if b"PUBLIC" not in block[1]:
            raise UnusableKey("holds something other than PEM public keys (-----BEGIN PUBLIC KEY-----)")
        try:
            material = load_pem_public_key(block[0])
        except (ValueError, UnsupportedAlgorithm):
            raise UnusableKey("holds a PEM public key that cannot be read") from None
        keys.append(_public_key(material, algorithms))
        if len(keys) > _MOST_KEYS:
            raise UnusableKey(f"holds more than {_MOST_KEYS} keys")
    if not keys:
        raise UnusableKey("holds no PEM public key (-----BEGIN PUBLIC KEY-----)")
    return Keys(keys)


class _Set(Struct):
    keys: list[dict[str, Any]]


def jwks_keys(data: bytes, algorithms: frozenset[str]) -> tuple[Keys, list[str]]:
    """The keys of a JWK Set (RFC 7517, section 5) that can verify these algorithms, and why the others cannot.

    A key of another family, for another use, private or malformed is ignored, as the RFC requires; possibly none is
    left. Raises :class:`UnusableKey` if the document is not a JWK Set.
    """
    try:
        found = msgspec.json.decode(data, type=_Set).keys
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UnusableKey("is not a JWK Set") from None
    if len(found) > _MOST_KEYS:
        raise UnusableKey(f"holds more than {_MOST_KEYS} keys")
    keys, ignored = [], []
    for number, jwk in enumerate(found, 1):
        try:
            keys.append(_from_jwk(jwk, algorithms))
        except UnusableKey as error:
            ignored.append(f"key {number} {error}")
    return Keys(keys), ignored


def _from_jwk(jwk: dict[str, Any], algorithms: frozenset[str]) -> Key:
    id, operations = jwk.get("kid"), jwk.get("key_ops")
    if not (id is None or isinstance(id, str)):
        raise UnusableKey("has a kid that is not text")
    if jwk.get("use", "sig") != "sig":
        raise UnusableKey("is not for signatures")
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        raise UnusableKey("is not for verifying")
    if "alg" in jwk:
        algorithms = frozenset(algorithm for algorithm in algorithms if algorithm == jwk["alg"])
        if not algorithms:
            raise UnusableKey("is for another algorithm")
    some = next(iter(algorithms))
    if jwk.get("kty") != _KEY_TYPES[FAMILIES[some]]:
        raise UnusableKey("is of another family than the configured algorithms")
    if "d" in jwk:
        raise UnusableKey("is private: publish its public half only, and replace it")
    try:
        material = _ALGORITHMS[some].from_jwk(jwk)  # the same for the whole family
    except Exception:
        # One malformed key, in whatever way, must not cost the others.
        raise UnusableKey("cannot be read") from None
    if isinstance(material, bytes):
        # A secret is used only for algorithms whose hash is no longer than the secret.
        long_enough = frozenset(a for a in algorithms if len(material) >= _HASH_BYTES[a[2:]])
        return secret_key(material, long_enough or algorithms, id)
    return _public_key(material, algorithms, id)
