"""The client of the Qure.ai Platform API for triggers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import aiohttp
from airflow.sdk import BaseHook

from qure_provider.api.answers import RawAnswer, parse_result
from qure_provider.api.model import ResourceRef, ResultAnswer
from qure_provider.hooks.connection import QureConnection
from qure_provider.hooks.failures import network_error
from qure_provider.hooks.http import credentials, redirect_within, results_url, user_agent
from qure_provider.hooks.pace import Pace
from qure_provider.hooks.transport import ANSWER_SECONDS

_OPERATOR = "QureResultsTrigger"
_MAX_CONNECTIONS = 64


class QureAsyncClient:
    """Asks for results, from an event loop.

    It asks once and tries nothing again: who polls comes back anyway. Use ``shared_client``, which makes it.

    Args:
        connection: Where the service is.
        session: Sends no cookies and no credentials of its own.
        pace: The ceiling on requests.
        proxy: The proxy to the service; None for none.
    """

    def __init__(
        self, connection: QureConnection, session: aiohttp.ClientSession, pace: Pace, proxy: str | None = None
    ) -> None:
        self.connection = connection
        self._session = session
        self._pace = pace
        self._proxy = proxy
        self._headers = {**credentials(connection), "User-Agent": user_agent(_OPERATOR), "Accept": "*/*"}

    async def result(self, ref: ResourceRef) -> ResultAnswer:
        """Ask for a result, once, when the ceiling lets it.

        Args:
            ref: The image or series.

        Returns:
            What is known of it; that it is pending or not there is an answer, no error.

        Raises:
            QureSettingsError: Token, Source or base URL are wrong.
            QureTransientError: Try later.
            QureRejectedError: It would be refused again, or the UID cannot be one.
        """
        url = results_url(self.connection, ref)
        try:
            raw = await self._ask(url)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise network_error("Results", error) from None
        return parse_result(raw, ref.route, self.connection.xray_results, max_bytes=self.connection.max_answer_bytes)

    async def close(self) -> None:
        """Close its connections."""
        await self._session.close()

    async def _ask(self, url: str) -> RawAnswer:
        for _ in range(self.connection.max_redirects):
            raw, location = await self._ask_once(url)
            target = redirect_within(url, "GET", raw.status, location)
            if target is None:
                return raw
            url = target
        return (await self._ask_once(url))[0]

    async def _ask_once(self, url: str) -> tuple[RawAnswer, str | None]:
        await self._pace.wait()
        async with self._session.get(url, headers=self._headers, allow_redirects=False, proxy=self._proxy) as response:
            body, limit = bytearray(), self.connection.max_answer_bytes
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > limit:
                    break
            headers = response.headers
            raw = RawAnswer(
                response.status,
                headers.get("Content-Type", ""),
                bytes(body[: limit + 1]),
                headers.get("Retry-After"),
            )
            return raw, headers.get("Location")


@dataclass(slots=True)
class _Shared:
    """One connection's client in one event loop, and what outlives it."""

    users: int = 0
    client: QureAsyncClient | None = None
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    pace: Pace = field(default_factory=Pace)


_by_loop: dict[asyncio.AbstractEventLoop, dict[str, _Shared]] = {}


@asynccontextmanager
async def shared_client(qure_conn_id: str) -> AsyncIterator[QureAsyncClient]:
    """Give the one client that all triggers of this process share for a connection.

    They share its connection pool and its ceiling on requests. The first to come opens it, the last to leave closes it;
    the ceiling holds across that.

    Args:
        qure_conn_id: The Airflow connection, of type ``qure``.

    Yields:
        The client.

    Raises:
        QureSettingsError: A field of the connection is missing or wrong; the message names it.
    """
    shared = _shared(qure_conn_id)
    shared.users += 1
    try:
        async with shared.opening:
            if shared.client is None:
                shared.client = await _open(qure_conn_id, shared.pace)
        yield shared.client
    finally:
        shared.users -= 1
        if not shared.users and shared.client:
            client, shared.client = shared.client, None
            await client.close()


def _shared(qure_conn_id: str) -> _Shared:
    loop = asyncio.get_running_loop()
    for other in [other for other in _by_loop if other.is_closed()]:
        del _by_loop[other]
    return _by_loop.setdefault(loop, {}).setdefault(qure_conn_id, _Shared())


async def _open(qure_conn_id: str, pace: Pace) -> QureAsyncClient:
    connection = QureConnection.from_airflow(await BaseHook.aget_connection(qure_conn_id))
    tls, proxy = await asyncio.to_thread(_prepare, connection)
    pace.requests_per_second = connection.requests_per_second
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls, limit=_MAX_CONNECTIONS),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(
            total=ANSWER_SECONDS + connection.connect_timeout + connection.read_timeout,
            sock_connect=connection.connect_timeout,
            sock_read=connection.read_timeout,
        ),
        trace_configs=[_pacing_repeats(pace)],
    )
    return QureAsyncClient(connection, session, pace, proxy)


def _pacing_repeats(pace: Pace) -> aiohttp.TraceConfig:
    """Keep the ceiling where aiohttp, by itself, asks once more because a pooled connection turned out to be dead."""

    async def on_connection(_: aiohttp.ClientSession, request: SimpleNamespace, __: object) -> None:
        if getattr(request, "had_connection", False):
            await pace.wait()
        request.had_connection = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(on_connection)
    trace.on_connection_reuseconn.append(on_connection)
    return trace


def _prepare(connection: QureConnection) -> tuple[ssl.SSLContext | bool, str | None]:
    """Do what reads files or imports much, which has no place in the event loop."""
    user_agent(_OPERATOR)
    trust, proxy = connection.trust, connection.proxy_for(connection.base_url)
    if isinstance(trust, bool):
        return trust, proxy
    is_folder = Path(trust).is_dir()
    tls = ssl.create_default_context(cafile=None if is_folder else trust, capath=trust if is_folder else None)
    return tls, proxy
