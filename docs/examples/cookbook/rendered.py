import json
import os
import sqlite3
from html import escape
from urllib.request import Request, urlopen

PAGE = """<!doctype html>
<title>Chat {chat}</title>
<body data-notify="{notify}">
<ol data-chat="{chat}" data-epoch="{epoch}" data-seq="{seq}">{items}</ol>
<script type="module" src="/docs/examples/cookbook/rendered.js"></script>
"""


def newest(chat):
    url = f"{os.environ['NOTIFY_API_URL']}/v1/position?subject=workspace.1.chat.{chat}.messages"
    request = Request(url, headers={"Authorization": f"Bearer {os.environ['NOTIFY_API_KEY']}"})
    with urlopen(request, timeout=5) as answer:
        return json.load(answer)


def render(chat):
    position = newest(chat)  # the position first, then the state: not the other way round
    database = sqlite3.connect(os.environ["DATABASE"])
    rows = database.execute("SELECT id, text FROM messages WHERE chat = ? ORDER BY id", (chat,)).fetchall()
    database.close()
    return PAGE.format(
        chat=chat,
        notify=escape(os.environ["NOTIFY_URL"]),
        epoch=escape(position["epoch"]),
        seq=position["seq"],
        items="".join(f'<li data-id="{id}">{escape(text)}</li>' for id, text in rows),
    )
