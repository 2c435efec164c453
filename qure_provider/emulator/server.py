"""Running the emulator: in this process beside a test, or in the foreground."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import tempfile
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from qure_provider.emulator.app import create_app
from qure_provider.emulator.control import EmulatorControl
from qure_provider.emulator.exchange import TRANSPORT
from qure_provider.emulator.settings import EmulatorSettings

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from starlette.types import ASGIApp, Receive, Scope, Send


async def _with_transport(
    app: ASGIApp, transport: asyncio.BaseTransport, scope: Scope, receive: Receive, send: Send
) -> None:
    scope[TRANSPORT] = transport
    await app(scope, receive, send)


class _Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Leaves the transport in each request's scope, so that a fault can end the connection."""

    app: ASGIApp

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.app = partial(_with_transport, self.app, transport)
        super().connection_made(transport)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()


@dataclass(slots=True)
class Tls:
    """What makes it answer HTTPS.

    Attributes:
        certificate: Path of the certificate chain, PEM.
        key: Path of its key, PEM.
    """

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class RunningEmulator:
    """An emulator that is listening.

    Attributes:
        base_url: Its base URL.
        settings: How it was started.
        storage: Folder of what it received and made.
        control: A client of its control API.
    """

    base_url: str
    settings: EmulatorSettings = field(repr=False)
    storage: Path
    control: EmulatorControl

    @property
    def token(self) -> str:
        """What must follow ``Token `` in the Authorization header."""
        return self.settings.token

    @property
    def source(self) -> str:
        """What the Source header must say."""
        return self.settings.source

    @property
    def headers(self) -> dict[str, str]:
        """The headers that every request needs, but for User-Agent, which clients set by themselves."""
        return {"Authorization": f"Token {self.token}", "Source": self.source}


def is_loopback(host: str) -> bool:
    """Say whether an address can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(settings: EmulatorSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((settings.host, settings.port))
    return listening


@contextlib.contextmanager
def _storage(settings: EmulatorSettings) -> Iterator[Path]:
    """Give each start a folder of its own, within the storage if there is one."""
    if settings.storage is not None:
        settings.storage.mkdir(parents=True, exist_ok=True)
        yield Path(tempfile.mkdtemp(prefix="run-", dir=settings.storage))
    else:
        with tempfile.TemporaryDirectory(prefix="qure-emulator-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)


def _url(listening: socket.socket, tls: Tls | None) -> str:
    host, port = listening.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _server(settings: EmulatorSettings, storage: Path, tls: Tls | None, on_ready: Callable[[], None]) -> _Server:
    secured: dict[str, Any] = {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key} if tls else {}
    config = uvicorn.Config(
        create_app(settings, storage),
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
        **secured,
    )
    return _Server(config, on_ready)


@contextlib.contextmanager
def running_emulator(settings: EmulatorSettings | None = None, *, tls: Tls | None = None) -> Iterator[RunningEmulator]:
    """Run an emulator in a thread of this process.

    Args:
        settings: How it behaves; None takes the defaults, with a token and source of its own.
        tls: Makes it answer HTTPS.

    Yields:
        The emulator, listening.

    Raises:
        RuntimeError: It was not listening within 15 seconds.
    """
    settings = settings or EmulatorSettings()
    with contextlib.ExitStack() as stack:
        storage = stack.enter_context(_storage(settings))
        listening = stack.enter_context(_listen(settings))
        ready = threading.Event()
        server = _server(settings, storage, tls, ready.set)
        thread = threading.Thread(target=server.run, args=([listening],), name="qure-emulator", daemon=True)
        thread.start()
        try:
            if not ready.wait(15):
                raise RuntimeError("The emulator was not listening within 15 seconds.")
            base_url = _url(listening, tls)
            with EmulatorControl(base_url, verify=str(tls.certificate) if tls else True) as control:
                yield RunningEmulator(base_url, settings, storage, control)
        finally:
            server.should_exit = True
            thread.join(15)


def serve(
    settings: EmulatorSettings, *, tls: Tls | None, port_file: Path | None, announce: Callable[[str], None]
) -> None:
    """Run an emulator in the foreground until it is told to stop.

    Args:
        settings: How it behaves.
        tls: Makes it answer HTTPS.
        port_file: Where its port is written once it is listening.
        announce: Called with its base URL once it is listening.
    """
    with contextlib.ExitStack() as stack:
        storage = stack.enter_context(_storage(settings))
        listening = stack.enter_context(_listen(settings))

        def on_ready() -> None:
            if port_file is not None:
                partial_file = port_file.with_name(f"{port_file.name}.partial")
                partial_file.write_text(f"{listening.getsockname()[1]}\n")
                partial_file.replace(port_file)
            announce(_url(listening, tls))

        # The server hands the signal that ended it on to whoever handled it before; the temporary folder goes first.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        _server(settings, storage, tls, on_ready).run([listening])
