import asyncio
import os

from notify.client import AsyncioClient


async def main():
    async with AsyncioClient(os.environ["NOTIFY_URL"], os.environ["NOTIFY_TOKEN"]) as client:
        async for message in client.chat(1):
            print(message.sender_id, message.content, flush=True)


asyncio.run(main())
