"""Keys, tokens and a local HTTP server for the authentication tests."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import get_default_algorithms
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

NOW = 1_700_000_000
SECRET = "s3cret-" * 10  # 70 bytes: long enough for every HS algorithm

#: a key that is too short to be accepted
RSA_1024 = b"""\
-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDVKjhTCkdiPjus0jXOjhwtVvAT
ieaRjCI+uQNnZ72zEpDVKf3uONX7+vcMBYlr+h5qCy5qXR6U6ForZT5VtqBL1OcC
ysgXboGRToRzkj1o4U/QDecnk+p/hZipdt8ZUK5woSuMChCYvScW1TiGNzEj8B0r
ANGn5PBb8F9AUpzDfQIDAQAB
-----END PUBLIC KEY-----
"""

CURVES = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}


def private_key(algorithm: str, number: int = 0) -> Any:
    """A key pair for an algorithm; each number gives a different one."""
    return _private_key("RS" if algorithm.startswith("RS") else algorithm, number)


@cache
def _private_key(algorithm: str, number: int) -> Any:
    if algorithm == "RS":
        return rsa.generate_private_key(65537, 2048)
    if algorithm in CURVES:
        return ec.generate_private_key(CURVES[algorithm]())
    return ed448.Ed448PrivateKey.generate() if number == 448 else ed25519.Ed25519PrivateKey.generate()


def public_pem(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: Any) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def jwk(algorithm: str, number: int = 0, **members: Any) -> dict[str, Any]:
    """The public half of a key pair as a JWK."""
    made = get_default_algorithms()[algorithm].to_jwk(
        private_key(algorithm, number).public_key(), as_dict=True
    )
    return {**made, **members}


def oct_jwk(secret: str = SECRET, **members: Any) -> dict[str, Any]:
    return {"kty": "oct", "k": b64(secret.encode()), **members}


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims(**changed: Any) -> dict[str, Any]:
    """Valid claims at time NOW; None leaves a claim out."""
    made = {"id": 1, "workspace_id": 2, "exp": NOW + 3600, **changed}
    return {name: value for name, value in made.items() if value is not None}


def token(
    key: Any = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **changed: Any
) -> str:
    return jwt.encode(claims(**changed), key, algorithm, headers=headers)


def raw_token(header: bytes | dict[str, Any], payload: bytes | dict[str, Any], secret: str = SECRET) -> str:
    """A token with any header and payload, and a correct HS256 signature."""
    parts = [
        b64(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in (header, payload)
    ]
    signed = ".".join(parts)
    return f"{signed}.{b64(hmac.digest(secret.encode(), signed.encode(), hashlib.sha256))}"


def temporary_file(test: SynchronousTestCase, data: bytes = b"") -> str:
    """The path of a file that is deleted after the test."""
    folder = tempfile.mkdtemp()
    test.addCleanup(shutil.rmtree, folder)
    path = Path(folder, "file")
    path.write_bytes(data)
    return str(path)


Handler = Callable[[Request], "bytes | Deferred[bytes]"]


class _Page(Resource):
    isLeaf = True

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self.handler = handler

    def render(self, request: Request) -> Any:
        made = self.handler(request)
        if not isinstance(made, Deferred):
            return made
        gone = request.notifyFinish()
        gone.addErrback(lambda failure: None)

        def finish(body: bytes) -> None:
            if not gone.called:
                request.write(body)
                request.finish()

        made.addCallback(finish)
        return NOT_DONE_YET


async def serve(test: TestCase, handler: Handler, site: Site | None = None) -> str:
    """Start a local HTTP server that runs until the end of the test; return its URL."""
    site = site or Site(_Page(handler))
    port = reactor.listenTCP(0, site, interface="127.0.0.1")  # type: ignore[attr-defined]
    channels: list[Any] = []
    build = site.buildProtocol

    def remember(address: Any) -> Any:
        channels.append(channel := build(address))
        return channel

    site.buildProtocol = remember  # type: ignore[method-assign]

    async def stop() -> None:
        await port.stopListening()
        for channel in channels:
            if channel._channel.transport is not None:
                channel._channel.transport.abortConnection()

    test.addCleanup(lambda: Deferred.fromCoroutine(stop()))
    return f"http://127.0.0.1:{port.getHost().port}/"
