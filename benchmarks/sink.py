"""A server that reads uploads, counts their parts and throws them away; it answers like the service.

``python -m benchmarks.sink --series UID``. The port stands on its first line of output. It is as fast as Python can be:
a thread a connection, which copies out of the socket into one buffer and looks for nothing but the boundary.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from email.message import Message
from functools import lru_cache

BLOCK = 1024 * 1024
STOW_PATH = "/dicom-web/studies"
SEEN_PATH = "/seen"


class _Closed(Exception):  # noqa: N818 - how a connection ends is no error
    """The other side is done."""


class Sink:
    """What all connections share.

    Args:
        series_instance_uid: The only series that is ever sent.
        delay: Seconds that pass before an upload is answered.
    """

    def __init__(self, series_instance_uid: str, delay: float) -> None:
        self._series = series_instance_uid
        self._delay = delay
        self._seen = {"requests": 0, "files": 0, "bytes": 0}
        self._lock = threading.Lock()
        self.answer = lru_cache(maxsize=64)(self._answer)

    def serve(self, announce: Callable[[int], None]) -> None:
        """Listen on a free port of the loopback interface, for ever."""
        with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
            announce(server.getsockname()[1])
            while True:
                connection, _ = server.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_Connection(self, connection).serve, daemon=True).start()

    def note(self, files: int, size: int) -> None:
        """Count an upload, and wait as long as it is to take."""
        with self._lock:
            self._seen["requests"] += 1
            self._seen["files"] += files
            self._seen["bytes"] += size
        time.sleep(self._delay)

    def take_seen(self) -> bytes:
        """Tell what was seen since last asked."""
        with self._lock:
            seen, self._seen = self._seen, dict.fromkeys(self._seen, 0)
        return json.dumps(seen).encode()

    def _answer(self, files: int) -> bytes:
        entry = {
            "message": "DICOM registered successfully.",
            "created": True,
            "license_expired": False,
            "metadata": {},
        }
        detail = {"SeriesInstanceUID": self._series, "NumberOfSeriesRelatedInstances": files}
        content = {
            "message": "Success",
            "status": "success",
            "messages": {f"file{index}": entry for index in range(files)},
            "series_instance_uids": [self._series],
            "detailed_info": [detail],
        }
        return json.dumps(content).encode()


class _Connection:
    def __init__(self, sink: Sink, connection: socket.socket) -> None:
        self._sink = sink
        self._socket = connection
        self._rest = b""

    def serve(self) -> None:
        try:
            while True:
                self._one()
        except (_Closed, ConnectionError):
            pass
        finally:
            self._socket.close()

    def _one(self) -> None:
        method, path, headers = self._head()
        if headers.get("Expect", "").lower() == "100-continue":
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if method == "GET":
            self._reply(self._sink.take_seen() if path == SEEN_PATH else b"{}")
            return
        parts = _PartCounter(headers)
        size = self._read_body(headers, parts)
        self._sink.note(parts.count, size)
        if path == STOW_PATH:
            self._reply(b"{}", "application/dicom+json")
        else:
            self._reply(self._sink.answer(parts.count))

    def _head(self) -> tuple[str, str, Mapping[str, str]]:
        head = self._until(b"\r\n\r\n")
        request, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = request.split(" ", 2)
        headers = {name.strip().title(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return method, path, headers

    def _read_body(self, headers: Mapping[str, str], parts: _PartCounter) -> int:
        if headers.get("Transfer-Encoding", "").lower() != "chunked":
            size = int(headers["Content-Length"])
            self._read(size, parts)
            return size
        size = 0
        while length := int(self._until(b"\r\n"), 16):
            self._read(length, parts)
            self._until(b"\r\n")
            size += length
        self._until(b"\r\n")
        return size

    def _read(self, size: int, parts: _PartCounter) -> None:
        start, self._rest = self._rest[:size], self._rest[size:]
        parts.feed(start)
        left = size - len(start)
        while left:
            received = self._socket.recv_into(parts.room, min(left, len(parts.room)))
            if not received:
                raise _Closed
            parts.take(received)
            left -= received

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._rest:
            more = self._socket.recv(64 * 1024)
            if not more:
                raise _Closed
            self._rest += more
        found, _, self._rest = self._rest.partition(mark)
        return found

    def _reply(self, body: bytes, content_type: str = "application/json") -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)


class _PartCounter:
    """Counts the parts of a multipart body that is written into its buffer piece by piece."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        message = Message()
        message["Content-Type"] = headers["Content-Type"]
        self._mark = f"--{message.get_boundary()}\r\n".encode()
        self._buffer = bytearray(BLOCK)
        self._carried = 0
        self.count = 0

    @property
    def room(self) -> memoryview:
        """Where the next bytes go."""
        return memoryview(self._buffer)[self._carried :]

    def feed(self, content: bytes) -> None:
        """Take in bytes that were read already."""
        while content:
            piece = content[: len(self.room)]
            self.room[: len(piece)] = piece
            self.take(len(piece))
            content = content[len(piece) :]

    def take(self, received: int) -> None:
        """Take in so many bytes that were written into the room."""
        end = self._carried + received
        self.count += self._buffer.count(self._mark, 0, end)
        keep = min(len(self._mark) - 1, end)
        self._buffer[:keep] = self._buffer[end - keep : end]
        self._carried = keep


def main() -> None:
    """Serve for as long as whoever started it keeps standard input open."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sink")
    parser.add_argument("--series", required=True)
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    sink = Sink(options.series, options.delay)
    threading.Thread(target=sink.serve, args=(lambda port: print(port, flush=True),), daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
