"""``python -m demo.receivers``: a SIMULATED hospital's archive (C-STORE), RIS (MLLP) and mail (SMTP) on loopback.

Each keeps what it gets as files, so that anybody can look at what arrived.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, StoragePresentationContexts, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

START, END = b"\x0b", b"\x1c\r"


def start_archive(folder: Path) -> int:
    """Start a C-STORE receiver that keeps each object under its SOPInstanceUID.

    Args:
        folder: Where they go.

    Returns:
        Its port.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entity = AE(ae_title="ARCHIVE")
    for context in StoragePresentationContexts:
        entity.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
    entity.add_supported_context(Verification)

    def keep(event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        dataset.save_as(folder / f"{dataset.SOPInstanceUID}.dcm", enforce_file_format=True)
        return 0x0000

    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    return int(server.server_address[1])  # type: ignore[union-attr]


def start_ris(folder: Path) -> int:
    """Start an MLLP receiver that keeps each message under its control id and accepts it.

    Args:
        folder: Where they go.

    Returns:
        Its port.
    """
    folder.mkdir(parents=True, exist_ok=True)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            received = b""
            with contextlib.suppress(OSError):
                while block := self.request.recv(65536):
                    received += block
                    while END in received:
                        message, received = received.split(END, 1)
                        self.wfile.write(START + _accept(message.lstrip(START), folder) + END)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def _accept(message: bytes, folder: Path) -> bytes:
    header = message.split(b"\r", 1)[0].split(b"|")
    control_id = header[9]
    name = "".join(letter for letter in control_id.decode("ascii", "replace") if letter.isalnum())
    (folder / f"{name}.hl7").write_bytes(message)
    answer = b"MSH|^~\\&|SIMULATED||QURE-AI||20260101000000||ACK^R01^ACK|A%b|T|2.5.1\rMSA|AA|%b"
    return answer % (control_id, control_id)


def start_mail(folder: Path) -> int:
    """Start a mail server that keeps each message, named by the second in which it came.

    Args:
        folder: Where they go.

    Returns:
        Its port.
    """
    folder.mkdir(parents=True, exist_ok=True)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self._say("220 SIMULATED")
            with contextlib.suppress(OSError):
                while line := self.rfile.readline():
                    command = line.strip().upper()
                    if command == b"DATA":
                        self._say("354 go on")
                        _keep_mail(folder, iter(self.rfile.readline, b".\r\n"))
                    self._say("221 bye" if command == b"QUIT" else "250 SIMULATED")
                    if command == b"QUIT":
                        return

        def _say(self, line: str) -> None:
            self.wfile.write(f"{line}\r\n".encode())

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def _keep_mail(folder: Path, lines: Iterator[bytes]) -> None:
    content = b"".join(lines)
    (folder / f"{time.time():.3f}.eml").write_bytes(content)


def main() -> None:
    """Run all of them until ended, and say where they listen in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for what arrives")
    parser.add_argument("--port-file", type=Path, required=True, help="gets their ports as JSON")
    options = parser.parse_args()
    starts = {"archive": start_archive, "ris": start_ris, "mail": start_mail}
    ports = {name: start(options.folder / name) for name, start in starts.items()}
    unfinished = options.port_file.with_suffix(".part")
    unfinished.write_text(json.dumps(ports), encoding="utf-8")
    unfinished.rename(options.port_file)
    threading.Event().wait()


if __name__ == "__main__":
    main()
