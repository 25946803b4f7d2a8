import os

from notify.client import Publisher

with Publisher(os.environ["NOTIFY_API_URL"], os.environ["NOTIFY_API_KEY"]) as publisher:
    position = publisher.chat(workspace_id=1, chat_id=1, sender_id=7, content="Hello")
    print(position.epoch, position.seq)
