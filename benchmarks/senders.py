"""Those who send the same files to the sink, each in a process of its own that waits to be told.

``python -m benchmarks.senders NAME URL FOLDER SCRATCH MOST``. Each line read from standard input makes it send the
first MOST files below FOLDER; each line written says, as JSON, how long that took and what the service acknowledged.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.children import orders, say, timed
from benchmarks.sink import STOW_PATH
from qure_provider.dicom.pack import pack_requests
from qure_provider.hooks.connection import MAX_REQUEST_BYTES
from qure_provider.hooks.multipart import CLOSING_SIZE, part_size
from qure_provider.hooks.outgoing import OutgoingFile

PARALLEL = 4
"""Connections of our hook, its default."""
CONN_ID = "bench"


@dataclass(frozen=True, slots=True)
class Job:
    """What is sent, and where to.

    Attributes:
        url: The sink's.
        files: In order.
        scratch: A folder to write to.
    """

    url: str
    files: Sequence[OutgoingFile]
    scratch: Path

    @property
    def requests(self) -> list[tuple[OutgoingFile, ...]]:
        """The files of each request: the same for everyone, as many as our hook would put into one."""
        return pack_requests(self.files, part_size, MAX_REQUEST_BYTES, CLOSING_SIZE)


Send = Callable[[], int]
"""Sends everything once; returns how many files were acknowledged."""


def ours(job: Job) -> Send:
    """The provider's hook, as it comes."""
    send_all = _hook(job.url)
    return lambda: send_all(job.files)


def identified(job: Job) -> Send:
    """The provider's hook with every file held to what was planned, as the pipeline does it but for its ledger."""
    from qure_provider.hooks.outgoing import FileVersion

    status = [Path(str(file.path)).stat() for file in job.files]
    planned = [
        replace(file, version=FileVersion(each.st_size, each.st_mtime))
        for file, each in zip(job.files, status, strict=True)
    ]
    send_all = _hook(job.url)
    return lambda: send_all(planned)


def deidentified(job: Job) -> Send:
    """The same with every file de-identified on its way."""
    from qure_provider.dicom.deidentify import Deidentifier
    from qure_provider.dicom.export import LocalFile
    from qure_provider.dicom.pseudonym import KEY_LENGTH, Pseudonymizer
    from qure_provider.hooks.outgoing import FileVersion, HeaderSpool

    deidentifier = Deidentifier(Pseudonymizer(os.urandom(KEY_LENGTH)))

    def prepared(spool: HeaderSpool) -> Iterator[OutgoingFile]:
        for file in job.files:
            with LocalFile(str(file.path)) as source:
                done = deidentifier.deidentify(source)
                version = FileVersion(source.size, source.modified)
            # the sink vouches for one series alone, so it goes by its own name
            yield OutgoingFile(
                sop_instance_uid=done.sop_instance_uid,
                series_instance_uid=file.series_instance_uid,
                path=file.path,
                size=done.size,
                header=spool.keep(done.header),
                offset=done.offset,
                version=version,
            )

    send_all = _hook(job.url)

    def send() -> int:
        with HeaderSpool() as spool:
            return send_all(prepared(spool))

    return send


def _hook(url: str) -> Callable[[Iterable[OutgoingFile]], int]:
    os.environ[f"AIRFLOW_CONN_{CONN_ID.upper()}"] = json.dumps(
        {"conn_type": "qure", "host": url, "password": "token", "extra": {"source": "source"}}
    )
    from qure_provider.hooks.qure import QureHook

    def send(files: Iterable[OutgoingFile]) -> int:
        with QureHook(CONN_ID) as hook:
            return len(hook.upload(files).acknowledged)

    return send


def sample(job: Job) -> Send:
    """The vendor's sample: toolbelt's encoder over all files of a request, with its default settings."""
    import requests
    from requests_toolbelt.multipart.encoder import MultipartEncoder

    def send() -> int:
        acknowledged = 0
        for files in job.requests:
            encoder = MultipartEncoder(  # type: ignore[no-untyped-call]
                {str(file.path): (str(file.path), file.open(), "application/dicom") for file in files}
            )
            content_type = f"multipart/related; type=application/dicom; boundary={encoder.boundary_value}"
            headers = {"Content-Type": content_type, "Authorization": "Token token"}
            answer = requests.post(f"{job.url}/studies/", data=encoder, headers=headers, timeout=600)
            answer.raise_for_status()
            acknowledged += len(answer.json()["messages"])
        return acknowledged

    return send


def curl(job: Job) -> Send:
    """The program curl with ``-F``: one process, one connection, a request after the other."""
    program = shutil.which("curl")
    if not program:
        raise FileNotFoundError("curl is not installed")
    config = job.scratch / "curl.conf"
    lines: list[str] = []
    for files in job.requests:
        lines += ["next"] if lines else []
        lines += [
            f'url = "{job.url}/studies/"',
            'header = "Authorization: Token token"',
            "silent",
            "show-error",
            "fail",
        ]
        lines += [f'form = "file{n}=@{file.path};type=application/dicom"' for n, file in enumerate(files)]
    config.write_text("\n".join(lines), encoding="utf-8")
    command = [program, "--disable", "--noproxy", "*", "--config", str(config)]

    def send() -> int:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
        decoder, rest, acknowledged = json.JSONDecoder(), done.stdout, 0
        while rest:
            answer, end = decoder.raw_decode(rest)
            acknowledged += len(answer["messages"])
            rest = rest[end:]
        return acknowledged

    return send


def stow(job: Job) -> Send:
    """dicomweb-client: STOW-RS, from files that are read with pydicom."""
    import pydicom
    from dicomweb_client import DICOMwebClient

    client = DICOMwebClient(f"{job.url}{STOW_PATH.rpartition('/')[0]}", timeout=600)

    def send() -> int:
        for files in job.requests:
            client.store_instances([pydicom.dcmread(str(file.path)) for file in files])
        return len(job.files)

    return send


def limit(job: Job) -> Send:
    """What the machine can do: ``sendfile`` over raw sockets, as many as our hook has, nothing checked or retried."""
    address = urlsplit(job.url)
    boundary = uuid.uuid4().hex

    def send_one(files: Sequence[OutgoingFile], connection: socket.socket) -> int:
        heads = [
            f"--{boundary}\r\nContent-Disposition: form-data; name=file{n}; filename=file{n}.dcm\r\n"
            "Content-Type: application/dicom\r\n\r\n".encode()
            for n in range(len(files))
        ]
        closing = f"--{boundary}--\r\n".encode()
        length = sum(map(len, heads)) + sum(file.size + 2 for file in files) + len(closing)
        connection.sendall(
            f"POST /studies/ HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {length}\r\n"
            f"Content-Type: multipart/form-data; boundary={boundary}\r\n\r\n".encode()
        )
        for head, file in zip(heads, files, strict=True):
            connection.sendall(head, socket.MSG_MORE)
            descriptor = os.open(str(file.path), os.O_RDONLY)
            try:
                sent = 0
                while sent < file.size:
                    sent += os.sendfile(connection.fileno(), descriptor, sent, file.size - sent)
            finally:
                os.close(descriptor)
            connection.sendall(b"\r\n", socket.MSG_MORE)
        connection.sendall(closing)
        return _count_answered(connection)

    def send() -> int:
        waiting = job.requests[::-1]
        counts: list[int] = []

        def work() -> None:
            with socket.create_connection((address.hostname, address.port)) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while waiting:
                    try:
                        files = waiting.pop()
                    except IndexError:
                        return
                    counts.append(send_one(files, connection))

        threads = [threading.Thread(target=work) for _ in range(min(PARALLEL, len(waiting)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts)

    return send


def _count_answered(connection: socket.socket) -> int:
    with connection.makefile("rb") as answer:
        length = 0
        while (line := answer.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return len(json.loads(answer.read(length))["messages"])


SENDERS: Mapping[str, Callable[[Job], Send]] = {
    "ours": ours,
    "identified": identified,
    "deidentified": deidentified,
    "sample": sample,
    "curl": curl,
    "stow": stow,
    "limit": limit,
}


class Watch:
    """Counts a process's open files while something runs."""

    def __init__(self) -> None:
        self.most = 0
        self.before = _open_files()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.002):
            self.most = max(self.most, _open_files() - self.before)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - less work, while something is measured


def memory(name: str) -> int:
    """Return one of this process's memory figures, in bytes.

    Args:
        name: As ``/proc/self/status`` has it.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith(f"{name}:")).split()[1]) * 1024


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Give a function that tells by how many bytes memory has grown at most."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = memory("VmRSS")
    yield lambda: memory("VmHWM") - before


def _raise_open_files() -> None:
    """The sample opens every file of a request at once; it is to show its speed nevertheless."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    """Prepare, then send whenever told."""
    name, url, folder, scratch, most = sys.argv[1:]
    _raise_open_files()
    paths = sorted(Path(folder).rglob("*.dcm"))[: int(most)]
    files = [OutgoingFile(path.stem, Path(folder).name, str(path), path.stat().st_size) for path in paths]
    SENDERS[name](Job(url, files[:1], Path(scratch)))()  # what is only done the first time is not measured
    send = SENDERS[name](Job(url, files, Path(scratch)))
    say({"files": len(files), "bytes": sum(file.size for file in files)})
    for order in orders():
        if order == "watched":
            with Watch() as watch, peak_memory() as growth:
                acknowledged = send()
            say({"acknowledged": acknowledged, "growth": growth(), "open_files": watch.most})
        else:
            say(timed(lambda: {"acknowledged": send()}))


if __name__ == "__main__":
    main()
