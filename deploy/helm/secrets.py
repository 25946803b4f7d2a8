"""Prints, with newly generated keys, the two Secrets that the chart needs and one with the logins of other users of NATS.

    docker run --rm -i --entrypoint python NOTIFY_IMAGE -I - NAMESPACE < secrets.py | kubectl apply -f -

It needs nkeys, which the image includes. ``python secrets.py NAMESPACE NAME`` names them NAME, NAME-nats and NAME-nats-users.
"""

import json
import os
import secrets
import sys

import nkeys


def pair() -> tuple[str, str]:
    """A user of NATS: the seed, which is secret, and the public key."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    return seed.decode(), nkeys.from_seed(bytearray(seed)).public_key.decode()


def secret(namespace: str, name: str, values: dict[str, str]) -> dict[str, object]:
    """One Secret of Kubernetes."""
    metadata = {"name": name, "namespace": namespace}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "Opaque",
        "stringData": values,
    }


def main(namespace: str = "default", name: str = "notify") -> None:
    """Print them as one list in JSON, which kubectl accepts like YAML."""
    (seed, notify), (backend_seed, backend), (operator_seed, operator) = pair(), pair(), pair()
    ours = {
        "jwt.secret": secrets.token_urlsafe(64),
        "api.keys": secrets.token_urlsafe(32),
        "nats.seed": seed,
    }
    theirs = {"NOTIFY_NKEY": notify, "BACKEND_NKEY": backend, "OPERATOR_NKEY": operator}
    # For backends that publish directly to NATS, and for people with the nats command: no pod of the chart mounts it.
    others = {"backend.seed": backend_seed, "operator.seed": operator_seed}
    items = [
        secret(namespace, name, ours),
        secret(namespace, f"{name}-nats", theirs),
        secret(namespace, f"{name}-nats-users", others),
    ]
    json.dump({"apiVersion": "v1", "kind": "List", "items": items}, sys.stdout, indent=2)


main(*sys.argv[1:])
