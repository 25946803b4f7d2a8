import asyncio
import os

from notify.client import AsyncioPublisher


async def main():
    async with AsyncioPublisher(os.environ["NOTIFY_API_URL"], os.environ["NOTIFY_API_KEY"]) as publisher:
        publishing = (publisher.chat(1, chat_id, sender_id=7, content="Hello") for chat_id in (1, 2, 3))
        for position in await asyncio.gather(*publishing):
            print(position.epoch, position.seq)


asyncio.run(main())
