#!/usr/bin/env python3
"""Streams that must not be dropped: an echo server for TCP and WebSocket, and a client of each that notices.

    benches/echo.py PORT      echoes TCP; what begins with `GET ` is taken for a WebSocket handshake and its frames are echoed
"""

import base64
import hashlib
import os
import resource
import selectors
import socket
import sys
import threading
import time

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


# === the server ===


class Stream:
    """One connection. Frames have one client each and at most 125 bytes: what the clients here send."""

    def __init__(self, connection):
        self.connection = connection
        self.kind = None
        self.pending = b""
        self.unsent = b""

    def take(self, data):
        """The bytes to send back."""
        if self.kind is None:
            self.kind = "websocket" if data.startswith(b"GET ") else "tcp"
        if self.kind == "tcp":
            return data
        self.pending += data
        if self.kind == "websocket":
            head, end, rest = self.pending.partition(b"\r\n\r\n")
            if not end:
                return b""
            self.kind, self.pending = "frames", rest
            return handshake_answer(head.decode())
        echoed = b""
        while len(self.pending) >= 6 and len(self.pending) >= 6 + (self.pending[1] & 0x7F):
            length = self.pending[1] & 0x7F
            mask, body = self.pending[2:6], self.pending[6 : 6 + length]
            plain = bytes(byte ^ mask[place % 4] for place, byte in enumerate(body))
            echoed += bytes([self.pending[0], length]) + plain
            self.pending = self.pending[6 + length :]
        return echoed


def handshake_answer(head):
    fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
    key = next(line.split(": ", 1)[1] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key"))
    assert fields.get("upgrade") == "websocket", head
    accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
    ).encode()


def serve(port):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    selector = selectors.EpollSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, events in selector.select():
            if key.fileobj is listener:
                try:
                    while True:
                        connection, _ = listener.accept()
                        connection.setblocking(False)
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        selector.register(connection, selectors.EVENT_READ, Stream(connection))
                except BlockingIOError:
                    continue
            stream = key.data
            try:
                if events & selectors.EVENT_READ:
                    data = stream.connection.recv(65536)
                    if not data:
                        raise ConnectionError
                    stream.unsent += stream.take(data)
                if stream.unsent:
                    stream.unsent = stream.unsent[stream.connection.send(stream.unsent) :]
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if stream.unsent else 0)
                if wanted != key.events:
                    selector.modify(stream.connection, wanted, stream)
            except BlockingIOError:
                selector.modify(stream.connection, selectors.EVENT_READ | selectors.EVENT_WRITE, stream)
            except (OSError, AssertionError, StopIteration):
                selector.unregister(stream.connection)
                stream.connection.close()


# === clients that notice ===


class Witness(threading.Thread):
    """Keeps one connection and echoes a few bytes ten times a second, until told to stop."""

    def __init__(self, name, port, path=None):
        super().__init__(daemon=True)
        self.name_shown, self.path = name, path
        self.connection = socket.create_connection(("127.0.0.1", port), 5)
        self.connection.settimeout(5)
        self.echoes, self.slowest, self.failure = 0, 0.0, None
        self.stopping = threading.Event()
        if path:
            self.handshake()
        self.start()

    def handshake(self):
        key = base64.b64encode(os.urandom(16)).decode()
        self.connection.sendall(
            f"GET {self.path} HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.connection.recv(1)
            assert byte, f"{self.name_shown} is closed in its handshake: {head}"
            head += byte
        accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest())
        assert head.startswith(b"HTTP/1.1 101 ") and accept in head, f"{self.name_shown} is not accepted: {head.decode()}"

    def echo(self, text):
        if self.path:
            mask = os.urandom(4)
            sent = bytes([0x81, 0x80 | len(text)]) + mask + bytes(b ^ mask[n % 4] for n, b in enumerate(text))
            expected = bytes([0x81, len(text)]) + text
        else:
            sent = expected = text
        self.connection.sendall(sent)
        got = b""
        while len(got) < len(expected):
            more = self.connection.recv(4096)
            assert more, "closed"
            got += more
        assert got == expected, f"{got!r} instead of {expected!r}"

    def run(self):
        while not self.stopping.is_set():
            began = time.monotonic()
            try:
                self.echo(f"echo {self.echoes}".encode())
            except (OSError, AssertionError) as error:
                self.failure = f"after {self.echoes} echoes: {error or type(error).__name__}"
                return
            self.echoes += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.stopping.wait(0.1)

    def stop(self):
        """What became of it."""
        self.stopping.set()
        self.join(10)
        self.connection.close()
        return self.failure or f"{self.echoes} echoes on one connection, the slowest {self.slowest * 1e3:.0f} ms"


if __name__ == "__main__":
    serve(int(sys.argv[1]))
