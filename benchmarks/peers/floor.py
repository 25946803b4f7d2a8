"""The floor: what the kernel takes to send the same bytes to the same sockets, with as little around it as Python allows.

A bare loop of ``socket.send``. No authentication, no WebSocket library, no buffering: a socket that would block drops
the frame. The chats of a connection are in its path, ``/1,2,3``.

    python floor.py PORT
"""

import base64
import hashlib
import json
import re
import select
import socket
import sys

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(payload: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        return bytes((0x81, length)) + payload
    return b"\x81\x7e" + length.to_bytes(2, "big") + payload


def main(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    clients: dict[int, socket.socket] = {}
    publishers: dict[int, bytes] = {}
    members: dict[int, list[socket.socket]] = {}

    def publish(body: bytes) -> None:
        for item in json.loads(body):
            payload = item["payload"]
            data = frame(json.dumps({"type": "chat_message", **payload}).encode())
            for member in members.get(payload["chat_id"], ()):
                try:
                    member.send(data)
                except OSError:
                    pass

    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                client, _ = listener.accept()
                client.setblocking(False)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()] = client
                poll.register(client, select.EPOLLIN)
                continue
            client = clients[fd]
            try:
                data = client.recv(1 << 20)
            except OSError:
                data = b""
            if not data:
                poll.unregister(fd)
                clients.pop(fd).close()
                publishers.pop(fd, None)
                continue
            if data.startswith(b"GET"):
                key = re.search(rb"Sec-WebSocket-Key: (\S+)", data)[1]
                accept = base64.b64encode(hashlib.sha1(key + MAGIC).digest())
                client.send(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
                )
                for chat in data.split(b" ", 2)[1].strip(b"/").split(b","):
                    members.setdefault(int(chat), []).append(client)
            elif fd in publishers or data.startswith(b"POST"):
                data = publishers.get(fd, b"") + data
                while (end := data.find(b"\r\n\r\n")) > 0:
                    length = int(re.search(rb"Content-Length: (\d+)", data[:end])[1])
                    if len(data) < end + 4 + length:
                        break
                    publish(data[end + 4 : end + 4 + length])
                    client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    data = data[end + 4 + length :]
                publishers[fd] = data


main(int(sys.argv[1]))
