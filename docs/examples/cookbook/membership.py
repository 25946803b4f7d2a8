"""What a backend tells notify of a change of members, each time behind the commit of that change in its database."""

import json
import os
from http.client import HTTPException
from urllib.request import Request, urlopen

WORKSPACE = 1


def joined(publisher, chat, user):
    """A hint to the user's clients: fetch a new token, subscribe."""
    publisher.notify(WORKSPACE, user, "membership", {"joined": [chat]})


def removed_with_chats_claim(user):
    """Tokens that were made before now still name the chat: none of them is good any more."""
    return call("/v1/revoke", user_id=user)


def removed_with_webhook(user, chat):
    """The subscriptions end, and the next question about the user reaches your backend."""
    return call("/v1/unsubscribe", user_id=user, chat_id=chat)


def call(path, **fields):
    """Raises OSError where it was not done, or nobody knows: repeat it, which does no harm."""
    request = Request(
        os.environ["NOTIFY_API_URL"] + path,
        json.dumps({"workspace_id": WORKSPACE, **fields}).encode(),
        {"Authorization": f"Bearer {os.environ['NOTIFY_API_KEY']}", "Content-Type": "application/json"},
    )
    try:
        with urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except (HTTPException, ValueError) as error:
        raise OSError(f"an answer that is none: {error}") from error
