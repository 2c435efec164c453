"""One request of the vendor's side: the fault it suffers, and what is noted of it."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
import time
from collections import Counter, deque
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse

from qure_provider.emulator.model import (
    Answer,
    AnyFault,
    At,
    Drip,
    Kind,
    Oversize,
    RequestRecord,
    Reset,
    Stall,
    Truncate,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from qure_provider.emulator.faults import Faults

TRANSPORT = "qure_emulator.transport"
"""Where the server leaves the connection's transport in a request's scope."""

_BLANKS = b" " * 65536


class Noted:
    """What was seen of requests: all counted, the newest kept whole.

    Args:
        keep: How many are kept whole.
    """

    def __init__(self, keep: int = 200_000) -> None:
        self.records: deque[RequestRecord] = deque(maxlen=keep)
        self.counts: Counter[tuple[Kind, str, int]] = Counter()
        self.in_flight: Counter[Kind] = Counter()
        self.peaks: Counter[Kind] = Counter()

    def clear(self) -> None:
        """Forget all of it, but not what is under way."""
        self.records.clear()
        self.counts.clear()
        self.peaks.clear()

    def begin(self, kind: Kind) -> None:
        """Note that a request came."""
        self.in_flight[kind] += 1
        self.peaks[kind] = max(self.peaks[kind], self.in_flight[kind])

    def end(self, record: RequestRecord) -> None:
        """Note how it ended."""
        self.in_flight[record.kind] -= 1
        self.records.append(record)
        self.counts[record.kind, record.uid, record.status] += 1


class NoAnswer(Response):
    """The connection ends here, without a byte of answer."""

    def __init__(self) -> None:
        super().__init__(status_code=500)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reset the connection."""
        await _end(scope, receive, reset=True)


class CutOff(Response):
    """An answer whose connection ends in the middle of the body.

    Args:
        whole: The whole answer.
        after_bytes: How much of its body is sent; None sends half.
        reset: Whether the connection is reset rather than closed.
    """

    def __init__(self, whole: Response, after_bytes: int | None, *, reset: bool) -> None:
        super().__init__(status_code=whole.status_code)
        self.raw_headers = whole.raw_headers
        self._whole = bytes(whole.body)
        self._sent = len(self._whole) // 2 if after_bytes is None else min(after_bytes, max(len(self._whole) - 1, 0))
        self._reset = reset

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what is sent, and end the connection."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._whole[: self._sent], "more_body": True})
        if self._reset:
            # A reset overtakes what is still on its way: give it a moment to arrive.
            await asyncio.sleep(0.05)
        await _end(scope, receive, reset=self._reset)


async def _end(scope: Scope, receive: Receive, *, reset: bool) -> None:
    transport: asyncio.Transport = scope[TRANSPORT]
    if reset and not transport.is_closing():
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()
    while (await receive())["type"] != "http.disconnect":
        pass


def json_answer(content: object, status: int = 200) -> Response:
    """Make a JSON answer."""
    return Response(json.dumps(content, separators=(",", ":")), status, media_type="application/json")


class Exchange:
    """One request.

    Args:
        request: The request.
        kind: Its kind.
        noted: Where it is noted.
        faults: What it may suffer.
        uid: The UID in its path.
    """

    def __init__(self, request: Request, kind: Kind, noted: Noted, faults: Faults, uid: str = "") -> None:
        self.request = request
        self.fault: AnyFault | None = None
        self.record = RequestRecord.model_construct(
            at=time.time(),
            kind=kind,
            uid=uid,
            path=request.url.path if kind is not Kind.ASSET else "/assets",
            user_agent=request.headers.get("user-agent", ""),
        )
        self._noted = noted
        self._faults = faults

    async def run(self, carry_out: Callable[[Exchange], Awaitable[Response]], about: Collection[str] = ()) -> Response:
        """Answer the request.

        Args:
            carry_out: Does what was asked.
            about: UIDs that the request is about, as far as they are known.

        Returns:
            The answer, harmed as the fault wants.
        """
        self._noted.begin(self.record.kind)
        status = 500
        try:
            response = await self.suffer({None, *about}) or await carry_out(self)
            response = await self._harmed(response)
            status = 0 if isinstance(response, NoAnswer) else response.status_code
        except ClientDisconnect:
            response, status = NoAnswer(), 0
        finally:
            self.record.status = status
            self.record.seconds = time.time() - self.record.at
            self.record.fault = self.fault.effect if self.fault else ""
            self._noted.end(self.record)
        return response

    async def suffer(self, about: Collection[str | None]) -> Response | None:
        """Take the fault that fits, unless there is one already, and suffer what comes before anything is carried out.

        Args:
            about: UIDs that the request is about; None among them takes faults for any UID too.

        Returns:
            The answer that ends it here, or None.
        """
        if self.fault is not None:
            return None
        self.fault = fault = self._faults.take(self.record.kind, about)
        match fault:
            case Answer(at=At.REQUEST):
                return _answered(fault)
            case Reset(at=At.REQUEST):
                await self._take_in(fault.after_bytes)
                return NoAnswer()
            case Stall(at=At.REQUEST):
                await self._stall(fault.seconds)
        return None

    async def _harmed(self, response: Response) -> Response:
        match self.fault:
            case Answer(at=At.ANSWER):
                return _answered(self.fault)
            case Reset(at=At.ANSWER):
                return NoAnswer()
            case Reset(at=At.BODY):
                return CutOff(response, self.fault.after_bytes, reset=True)
            case Truncate():
                return CutOff(response, self.fault.after_bytes, reset=False)
            case Stall(at=At.ANSWER):
                await self._stall(self.fault.seconds)
            case Stall(at=At.BODY):
                half = max(len(response.body) // 2, 1)
                return _slowly(response, half, self.fault.seconds)
            case Drip():
                return _slowly(response, self.fault.chunk, self.fault.seconds)
            case Oversize():
                return _padded(response, self.fault.size)
        return response

    async def _take_in(self, size: int) -> None:
        if not size:
            return
        taken = 0
        async for chunk in self.request.stream():
            taken += len(chunk)
            if taken >= size:
                return

    async def _stall(self, seconds: float | None) -> None:
        """Wait so long, or until the client is gone."""
        transport: asyncio.Transport = self.request.scope[TRANSPORT]
        left = math.inf if seconds is None else seconds
        until = time.monotonic() + left
        while left > 0:
            await asyncio.sleep(min(0.05, left))
            if transport.is_closing():
                raise ClientDisconnect
            left = until - time.monotonic()


def _answered(fault: Answer) -> Response:
    response = (
        json_answer(fault.json_body, fault.status)
        if fault.json_body is not None
        else Response(fault.body, fault.status, media_type="text/html" if "<html" in fault.body else "text/plain")
    )
    response.headers.update(fault.headers)
    return response


def _slowly(response: Response, chunk: int, seconds: float | None) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        body = bytes(response.body)
        for start in range(0, len(body), chunk):
            if start:
                await asyncio.sleep(seconds if seconds is not None else 86400)
            yield body[start : start + chunk]

    slow = StreamingResponse(pieces(), response.status_code)
    slow.raw_headers = response.raw_headers
    return slow


def _padded(response: Response, size: int) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        left = size
        while left:
            piece = _BLANKS[: min(left, len(_BLANKS))]
            left -= len(piece)
            yield piece
        yield bytes(response.body)

    padded = StreamingResponse(pieces(), response.status_code)
    padded.raw_headers = [(name, value) for name, value in response.raw_headers if name != b"content-length"]
    return padded
