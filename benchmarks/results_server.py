"""A server of results that costs next to nothing itself: each resource is pending until its time, then ready.

``python -m benchmarks.results_server PLAN``. PLAN is a JSON file: UID to ``[seconds from the beginning, triage word]``,
or to nothing where it never is ready. ``/status/<code>`` answers with that code, for clients of another kind.
The first line of output is the port; told ``begin`` the clock starts, told a number it says what it was asked in so
many seconds since.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from benchmarks.children import orders, say

_PENDING_XRAY = b'{"reason":"processing not started"}'
_PENDING_CT = b'{"success":false,"message":"Resource is under process. Please check back in some time."}'


class Results:
    """What all connections share.

    Args:
        plan: As the module says.
    """

    def __init__(self, plan: Mapping[str, tuple[float, str] | None]) -> None:
        self._plan = plan
        self._began = time.time()
        self._arrivals: list[float] = []

    def begin(self) -> dict[str, float]:
        """Start the clock, and count from nothing."""
        self._arrivals = []
        self._began = time.time()
        return {"began": self._began}

    def report(self, seconds: float) -> dict[str, object]:
        """Tell what was asked in so many seconds from the beginning: requests in all, and in the busiest second."""
        arrivals = self._arrivals[: bisect_left(self._arrivals, self._began + seconds)]
        return {
            "requests": len(arrivals),
            "busiest_second": max(
                (bisect_left(arrivals, at + 1, lo=index) - index for index, at in enumerate(arrivals)), default=0
            ),
        }

    def answer(self, path: str) -> tuple[int, bytes]:
        """Answer one question."""
        now = time.time()
        self._arrivals.append(now)
        elapsed = now - self._began
        *_, kind, last = path.split("/")
        if kind == "status":
            return int(last), b"{}"
        if last not in self._plan:
            return 404, b"{}"
        planned = self._plan[last]
        if planned is None or elapsed < planned[0]:
            return 202, _PENDING_XRAY if kind == "v2" else _PENDING_CT
        return 200, ready_body(planned[1], "qxr" if kind == "v2" else "qer")


def ready_body(triage: str, usecase: str) -> bytes:
    """Make the body of a result that is there."""
    result = {
        "report": {"impression": "SIMULATED", "findings": "SIMULATED"},
        "files": {"SC": ["https://files.example/1"], "SR": ["https://files.example/2"]},
    }
    content = {"success": True, "message": "", "triage_status": triage, "result": result, "usecase": usecase}
    return json.dumps(content).encode()


class _Connection(asyncio.Protocol):
    def __init__(self, results: Results) -> None:
        self._results = results
        self._transport: asyncio.Transport | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode("ascii").partition("?")[0]
            status, body = self._results.answer(path)
            assert self._transport
            self._transport.write(
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )


def main() -> None:
    """Serve, and do what is said."""
    results = Results(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(lambda: _Connection(results), "127.0.0.1", 0))
    threading.Thread(target=loop.run_forever, daemon=True).start()
    print(server.sockets[0].getsockname()[1], flush=True)
    for order in orders():
        say(results.begin() if order == "begin" else results.report(float(order)))


if __name__ == "__main__":
    main()
