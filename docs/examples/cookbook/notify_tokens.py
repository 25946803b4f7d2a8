import base64
import json
import os
import time
from pathlib import Path

import jwt

SECONDS = 300


def make_token(user_id, workspace_id, **claims):
    """A token for one user, signed with the first secret of the JWK Set that notify reads, too."""
    key = json.loads(Path(os.environ["NOTIFY_SECRETS"]).read_text())["keys"][0]
    secret = base64.urlsafe_b64decode(key["k"] + "=" * (-len(key["k"]) % 4))
    now = int(time.time())
    claims |= {"id": user_id, "workspace_id": workspace_id, "iat": now, "exp": now + SECONDS}
    token = jwt.encode(claims, secret, "HS256", headers={"kid": key["kid"]})
    return {"token": token, "expires_at": now + SECONDS}
