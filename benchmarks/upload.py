"""Upload: our hook against the vendor's sample, curl, dicomweb-client, and ``sendfile`` over raw sockets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests

from benchmarks.children import Child
from benchmarks.data import Image, uid, write_series
from benchmarks.figures import Figure, Target, WrongResultError, alternate
from benchmarks.senders import PARALLEL
from benchmarks.sink import SEEN_PATH

DELAY = 0.04
_MB = 1e6
_PEERS = {
    "sample": ("the vendor's sample", Target("ratio", ">=", 3)),
    "curl": ("curl -F", None),
    "stow": ("dicomweb-client, STOW", None),
    "limit": ("sendfile on raw sockets, the limit", Target("ratio", ">=", 0.6)),
}


@dataclass(frozen=True, slots=True)
class Load:
    """What is uploaded.

    Attributes:
        name: In words.
        image: What its files are.
        count: How many.
        stow_count: How many of them dicomweb-client gets: it needs milliseconds for each.
    """

    name: str
    image: Image
    count: int
    stow_count: int


def measure(folder: Path, *, fast: bool) -> Iterator[Figure]:
    """Measure it.

    Args:
        folder: For the files; about 1.1 GB, a fifth of it where fast.
        fast: Whether to take smaller loads and fewer rounds.

    Yields:
        The figures.

    Raises:
        WrongResultError: If a file was lost or not acknowledged.
    """
    share, rounds = (5, 2) if fast else (1, 5)
    loads = (
        Load(
            f"a CT series of {2_000 // share:,} images of 512 KB",
            Image("CT", 512),
            2_000 // share,
            stow_count=600 // share,
        ),
        Load(f"{20_000 // share:,} images of 10 KB", Image("DX", 43), 20_000 // share, stow_count=1_000 // share),
    )
    for number, load in enumerate(loads):
        with TemporaryDirectory(dir=folder) as scratch:
            series = Path(scratch, uid(2, number))
            for _ in write_series(series, load.image, series=number, count=load.count):
                pass
            yield from _measure_load(series, load, rounds)


def _measure_load(folder: Path, load: Load, rounds: int) -> Iterator[Figure]:
    with ExitStack() as stack:
        sink, slow_sink = (stack.enter_context(_Sink(folder.name, delay)) for delay in (0.0, DELAY))

        def sender(name: str, sink: _Sink) -> _Sender:
            return stack.enter_context(_Sender(name, sink, folder, load))

        senders = {name: sender(name, sink) for name in ("ours", "identified", "deidentified", *_PEERS)}
        slow = {f"{name}, delayed": sender(name, slow_sink) for name in ("ours", "sample")}
        speed = alternate({name: each.megabytes_a_second for name, each in {**senders, **slow}.items()}, rounds)
        for name, (peer, target) in _PEERS.items():
            yield Figure(f"{load.name}: speed, against {peer}", speed["ours"], "MB/s", speed[name], target)
        words = f"{load.name}: speed, de-identified against as they are"
        share = Target("ratio", ">=", 0.7) if load.image.modality == "CT" else None
        yield Figure(words, speed["deidentified"], "MB/s", speed["identified"], share)
        for name, who, target in (
            ("ours", "ours", Target("ratio", ">=", 0.8)),
            ("sample", "the vendor's sample", None),
        ):
            words = f"{load.name}: {who} with {DELAY * 1000:g} ms more a request, against itself without"
            yield Figure(words, speed[f"{name}, delayed"], "MB/s", speed[name], target)
        mine, theirs = senders["ours"].watched(), senders["sample"].watched()
        memory = mine["growth"] / _MB, "MB", theirs["growth"] / _MB, Target("ours", "<=", 64)
        yield Figure(f"{load.name}: growth of memory, against the vendor's sample", *memory)
        growth = senders["deidentified"].watched()["growth"] / _MB
        words = f"{load.name}: growth of memory, de-identified against as they are"
        yield Figure(words, growth, "MB", memory[0], Target("ours", "<=", 64))
        opened = mine["open_files"], "files", theirs["open_files"], Target("ours", "<=", 2 * PARALLEL)
        yield Figure(f"{load.name}: open files, against the vendor's sample", *opened)


class _Sink(Child):
    def __init__(self, series: str, delay: float) -> None:
        super().__init__("sink", "--series", series, "--delay", str(delay))
        self.url = f"http://127.0.0.1:{self.hear()}"

    def take_seen(self) -> dict[str, int]:
        """Ask what it saw since last asked."""
        with requests.Session() as session:
            session.trust_env = False
            seen: dict[str, int] = session.get(f"{self.url}{SEEN_PATH}", timeout=60).json()
        return seen


class _Sender(Child):
    def __init__(self, name: str, sink: _Sink, folder: Path, load: Load) -> None:
        most = load.stow_count if name == "stow" else load.count
        super().__init__("senders", name, sink.url, str(folder), str(folder.parent), str(most))
        self._sink = sink
        self._pixels = 2 * load.image.side**2
        self._is_shortened = name == "deidentified"  # private elements do not leave
        self._job = self.hear()
        if self._job["files"] != most:
            raise WrongResultError(f"{self.name}: {self._job['files']} files to send instead of {most}")

    def megabytes_a_second(self) -> float:
        """Send everything once."""
        return float(self._job["bytes"] / self._send("timed")["seconds"] / _MB)

    def watched(self) -> dict[str, Any]:
        """Send everything once, with an eye on memory and open files."""
        return self._send("watched")

    def _send(self, how: str) -> dict[str, Any]:
        self._sink.take_seen()
        said: dict[str, Any] = self.ask(how)
        seen = self._sink.take_seen()
        files = self._job["files"]
        if not said["acknowledged"] == seen["files"] == files:
            problem = f"{files} files to send, {seen['files']} arrived, {said['acknowledged']} acknowledged"
            raise WrongResultError(f"{self.name}: {problem}")
        least = files * self._pixels if self._is_shortened else self._job["bytes"]
        if seen["bytes"] < least:
            raise WrongResultError(f"{self.name}: {seen['bytes']} bytes arrived of {least} or more")
        return said
