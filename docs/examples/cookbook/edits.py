"""What a backend publishes of a chat's changes, each behind the commit of it in its database."""

WORKSPACE = 1


def edited(publisher, chat, user, message, text, version):
    """`version` rises with each change of the message, in the same transaction."""
    data = {"text": text, "version": version}
    publisher.event(
        WORKSPACE, chat, user, "edited", data, refers_to=message, key=f"edited-{message}-{version}"
    )


def deleted(publisher, chat, user, message):
    publisher.event(WORKSPACE, chat, user, "deleted", refers_to=message, key=f"deleted-{message}")


def reacted(publisher, chat, user, message, emoji, on, version):
    """`version` is of this user's reaction with this emoji: one row of the database."""
    data = {"emoji": emoji, "on": on, "version": version}
    key = f"reaction-{message}-{user}-{emoji.encode().hex()}-{version}"
    publisher.event(WORKSPACE, chat, user, "reaction", data, refers_to=message, key=key)


def member(publisher, chat, by, user, joined, version):
    """Who is in the list of members. What lets somebody in, or ends it, is another matter: membership.md."""
    data = {"user": user, "joined": joined, "version": version}
    publisher.event(WORKSPACE, chat, by, "member", data, key=f"member-{chat}-{user}-{version}")
