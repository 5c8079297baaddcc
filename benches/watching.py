"""Many watchers of one node, in one process: what `watchers` and `cluster-churn` share.

Services are called s0, s1, …; whoever registers an instance puts the time at which it is sent (`time.monotonic_ns()`) into its
metadata as `at`, and a few of the watchers read it back.
"""

import re
import select
import socket
import time

# Watchers that are let in at once: fewer than a listen queue holds.
OPENING_MAX = 500
# One in so many reads when what it is told was sent.
SAMPLE = 100
# How long the last events may take.
DRAIN_SECONDS = 30
MARK = b"\nevent: "
STAMP = re.compile(rb'event: (?:registered|updated)\n[^\n]*"at":"(\d+)"')
INDEX = re.compile(rb"id: (\d+)\nevent: ")


class Watcher:
    """Watches s`service` and counts what it is told; one that does not read is sent what its kernel takes and no more."""

    def __init__(self, number, service, port, since, reads):
        self.number, self.service, self.seen, self.tail = number, service, 0, b""
        self.socket = socket.socket()
        if not reads:
            # Else the kernel reads for it, megabytes.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(f"GET /v1/watch?name=s{service}&since={since} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())

    def read_head(self):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.socket.recv(1)
        assert head.startswith(b"HTTP/1.1 200"), head
        self.socket.setblocking(False)

    def take(self, data):
        """Notes what came, and returns what of it is new; the first event may have lost its beginning."""
        chunk = self.tail + data
        self.seen += chunk.count(MARK)
        self.tail = bytes(chunk[1 - len(MARK) :])
        return data


class Recorder(Watcher):
    """Keeps the index of every event, in the order in which they came."""

    def __init__(self, *where):
        super().__init__(*where)
        self.indexes = []

    def take(self, data):
        chunk = self.tail + data
        end = chunk.rfind(b"\n\n") + 1
        whole, self.tail = bytes(chunk[:end]), bytes(chunk[end:])
        self.indexes += map(int, INDEX.findall(whole))
        self.seen = len(self.indexes)
        return whole


def open_watchers(port, since, count, services, kind=Watcher, reads=True):
    """They go on after the index `since`, spread over the services."""
    watchers = []
    for first in range(0, count, OPENING_MAX):
        numbers = range(first, min(first + OPENING_MAX, count))
        opened = [kind(number, number % services, port, since, reads) for number in numbers]
        for watcher in opened:
            watcher.read_head()
        watchers += opened
    return watchers


def listen(watchers, is_over, latencies):
    """Reads until `is_over()`, which is asked again and again; puts the milliseconds from sending into `latencies`."""
    poll, by_descriptor = select.epoll(), {}
    for watcher in watchers:
        by_descriptor[watcher.socket.fileno()] = watcher
        poll.register(watcher.socket, select.EPOLLIN)
    buffer = bytearray(1 << 18)
    while not is_over():
        for descriptor, _ in poll.poll(0.1, 4096):
            watcher = by_descriptor[descriptor]
            size = watcher.socket.recv_into(buffer)
            assert size, f"watcher {watcher.number} was cut after {watcher.seen} events"
            new = watcher.take(buffer[:size])
            if watcher.number % SAMPLE == 0:
                now = time.monotonic_ns()
                latencies.extend((now - int(at)) / 1e6 for at in STAMP.findall(new))
