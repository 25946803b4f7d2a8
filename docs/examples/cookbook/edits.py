"""What a backend publishes of a chat's changes, each behind the commit of it in its database."""

import hashlib
import json

WORKSPACE = 1


def key(*what):
    """The same for the same, and short: with ids that are text and emojis of many characters it would be too long for notify."""
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def edited(publisher, chat, user, message, text, version):
    """`version` rises with each change of the message, in the same transaction."""
    data = {"text": text, "version": version}
    publisher.event(
        WORKSPACE, chat, user, "edited", data, refers_to=message, key=key("edited", message, version)
    )


def deleted(publisher, chat, user, message):
    publisher.event(WORKSPACE, chat, user, "deleted", refers_to=message, key=key("deleted", message))


def reacted(publisher, chat, user, message, emoji, on, version):
    """`version` is of this user's reaction with this emoji: one row of the database."""
    data = {"emoji": emoji, "on": on, "version": version}
    once = key("reaction", message, user, emoji, version)
    publisher.event(WORKSPACE, chat, user, "reaction", data, refers_to=message, key=once)


def member(publisher, chat, by, user, joined, version):
    """Who is in the list of members. What lets somebody in, or ends it, is another matter: membership.md."""
    data = {"user": user, "joined": joined, "version": version}
    publisher.event(WORKSPACE, chat, by, "member", data, key=key("member", user, version))
