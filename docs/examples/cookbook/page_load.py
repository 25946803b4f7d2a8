import asyncio
import os
import sqlite3

from notify.client import AsyncioClient

database = sqlite3.connect(os.environ["DATABASE"], isolation_level=None)


async def main():
    shown = {}

    async def load(position):
        shown.clear()
        for id, author, text in database.execute(
            "SELECT id, author, text FROM messages WHERE chat = 7 ORDER BY id"
        ):
            shown[id] = author, text
        print(len(shown), "loaded", flush=True)

    async with AsyncioClient(os.environ["NOTIFY_URL"], os.environ["NOTIFY_TOKEN"]) as client:
        async for message in client.chat(7, load=load):
            shown[message.message_id] = message.sender_id, message.content
            print(*(text for _, text in shown.values()), flush=True)


asyncio.run(main())
