import asyncio
import os
from urllib.request import urlopen

from notify.client import AsyncioClient, Refused


async def fetch_token():
    with await asyncio.to_thread(urlopen, os.environ["TOKEN_URL"]) as answer:
        return answer.read().decode()


async def read(chat):
    try:
        async for message in chat:
            print(chat.id, message.content, flush=True)
    except Refused as refused:
        print(chat.id, refused.code, flush=True)


async def refresh(client):
    """Have a new token in use, also where the backend gives none for a while."""
    while True:
        try:
            return await client.refresh()
        except Refused as refused:
            if refused.code != "no_token":
                raise
            await asyncio.sleep(1)


async def main():
    async with AsyncioClient(os.environ["NOTIFY_URL"], fetch_token) as client:
        print("connected", flush=True)
        reading = set()
        async for notification in client.notifications:
            if notification.kind == "membership":
                await refresh(client)
                for chat_id in notification.data["joined"]:
                    reading.add(asyncio.create_task(read(client.chat(chat_id))))


asyncio.run(main())
