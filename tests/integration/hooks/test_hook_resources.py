"""What an upload costs: memory, open files, time. Measured in a process of its own against a sink that discards."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

MEGABYTE = 1_000_000

UPLOAD = """
import gc, json, os, sys, threading, time
import psutil
from qure_provider.hooks.outgoing import OutgoingFile
from qure_provider.hooks.qure import QureHook

folder = sys.argv[1]
process = psutil.Process()

def listed(shape):
    for name in os.listdir(os.path.join(folder, shape)):
        path = os.path.join(folder, shape, name)
        yield OutgoingFile(f"1.2.3.{name}", "1.2", path, os.path.getsize(path))

def open_files():
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{fd}").startswith(folder)
        except OSError:
            pass
    return count

def upload(hook, files):
    peak = {"rss": 0, "files": 0}
    done = threading.Event()

    def watch():
        while not done.wait(0.005):
            peak["rss"] = max(peak["rss"], process.memory_info().rss)
            peak["files"] = max(peak["files"], open_files())

    gc.collect()
    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    report = hook.upload(files)
    done.set()
    watcher.join()
    return {"growth": peak["rss"] - before, "open": peak["files"], "acknowledged": len(report.acknowledged)}

with QureHook() as hook:
    hook.upload([])
    print(json.dumps({shape: upload(hook, list(listed(shape))) for shape in sys.argv[2:]}))
"""


class Sink:
    """Reads requests as fast as it can, discards them, and says in the older generation's words that it took all."""

    def __init__(self):
        self.largest = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listening.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        buffer = bytearray(1024 * 1024)
        with connection:
            while True:
                head = b""
                while b"\r\n\r\n" not in head:
                    received = connection.recv(65536)
                    if not received:
                        return
                    head += received
                head, _, body = head.partition(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                left = length - len(body)
                while left:
                    left -= connection.recv_into(buffer, min(left, len(buffer)))
                self.largest = max(self.largest, length)
                answer = json.dumps(
                    {
                        "message": "Success",
                        "series_instance_uids": ["1.2"],
                        # more than was ever brought: all that it holds
                        "detailed_info": [{"SeriesInstanceUID": "1.2", "NumberOfSeriesRelatedInstances": 1_000_000}],
                    }
                ).encode()
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)
                    + answer
                )


@pytest.fixture
def sink():
    sink = Sink()
    yield sink
    sink.close()


SHAPES = {"slices": (300, MEGABYTE), "large": (4, 75 * MEGABYTE), "small": (5000, 10_000)}


def test_memory_does_not_grow_with_the_data_and_few_files_are_open(tmp_path, connect, sink):
    for shape, (count, size) in SHAPES.items():
        (tmp_path / shape).mkdir()
        for index in range(count):
            with (tmp_path / shape / str(index)).open("wb") as file:
                file.truncate(size)  # sparse: it is the way out that is watched, not the disk
    connect(sink.url)

    done = subprocess.run(
        [sys.executable, "-c", UPLOAD, str(tmp_path), *SHAPES],
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ,
        check=True,
    )

    assert sink.largest <= 100 * MEGABYTE
    for shape, measured in json.loads(done.stdout.splitlines()[-1]).items():
        assert measured["acknowledged"] == SHAPES[shape][0]
        assert measured["growth"] <= 64 * 1024 * 1024
        assert 1 <= measured["open"] <= 4
