"""A requests session as the service wants it: idle timeouts, the connection's trust and proxies, nothing in logs."""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar
from requests.exceptions import RequestException
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError
from urllib3.exceptions import TimeoutError as AnswerTimeoutError

from qure_provider.api.errors import QureRejectedError
from qure_provider.hooks.connection import QureConnection, origin
from qure_provider.hooks.failures import network_error
from qure_provider.hooks.http import credentials, user_agent

AddressCheck = Callable[[str], None]
"""Takes the address that a connection was made to and raises if nothing may be asked of it."""

ANSWER_SECONDS = 120.0
"""How long reading an answer's body may take, however steadily it drips: it is small, and somebody waits for it."""

_quiet: ContextVar[bool] = ContextVar("qure_quiet", default=False)


class Line(Protocol):
    """What of a connection says how anybody is reached over it."""

    @property
    def connect_timeout(self) -> float:
        """Seconds to wait for a connection."""

    @property
    def read_timeout(self) -> float:
        """Seconds without a single byte, in either direction, after which a request is given up."""

    @property
    def trust(self) -> str | bool:
        """The certificate authorities to trust: a path, or False where nothing is checked."""

    def proxy_for(self, url: str) -> str | None:
        """Tell through which proxy a URL is asked for; None for none."""


class LineSession(requests.Session):
    """A session that goes by a connection's timeouts, trust and proxies, and keeps nothing.

    Args:
        line: How to reach others.
        operator: Named in the User-Agent; may be empty.
        parallel: Requests under way at once.
        check_address: Called for each new connection that goes through no proxy.
    """

    def __init__(
        self, line: Line, *, operator: str = "", parallel: int = 1, check_address: AddressCheck | None = None
    ) -> None:
        super().__init__()
        self.headers["User-Agent"] = user_agent(operator)
        self.trust_env = False  # what the environment says comes through the connection; a .netrc must not
        self.cookies = _NoCookies()
        adapter = _Adapter(line, parallel, check_address)
        self.mount("https://", adapter)
        self.mount("http://", adapter)


class Session(LineSession):
    """A session that shows its credentials to one origin only.

    Args:
        connection: Where the service is.
        operator: Named in the User-Agent; may be empty.
        with_credentials: Whether requests to the base URL's origin carry token and Source. No other ever does.
        check_address: Called for each new connection that goes through no proxy.
    """

    def __init__(
        self,
        connection: QureConnection,
        *,
        operator: str = "",
        with_credentials: bool = True,
        check_address: AddressCheck | None = None,
    ) -> None:
        parallel = connection.parallel_uploads + 1
        super().__init__(connection, operator=operator, parallel=parallel, check_address=check_address)
        self._credentials = credentials(connection) if with_credentials else {}
        self._origin = origin(connection.base_url)
        self.auth = self._authorize

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Take the credentials off a request that was redirected to another origin."""
        del response
        for name in self._credentials:
            prepared_request.headers.pop(name, None)
        self._authorize(prepared_request)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Tell where a response redirects to; nowhere if that is no web address, at which requests would break."""
        try:
            target = super().get_redirect_target(resp)
            if target:
                origin(urljoin(resp.url, target))
        except ValueError:
            return None
        return target

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if origin(request.url or "") == self._origin:
            request.headers.update(self._credentials)
        return request


@contextmanager
def failures_named(what: str) -> Iterator[None]:
    """Turn what the network raises into our errors, and keep urllib3 from logging addresses.

    Args:
        what: What is being done, in fixed words to begin a message with.

    Raises:
        QureSettingsError: A person has to mend something.
        QureTransientError: It may work later.
    """
    token = _quiet.set(True)
    try:
        yield
    except (RequestException, HTTPError) as error:
        raise network_error(what, error) from None
    finally:
        _quiet.reset(token)


def read_at_most(response: requests.Response, limit: int) -> bytes:
    """Read an answer's body, but no more than one byte beyond a limit, and no longer than ``ANSWER_SECONDS``.

    Args:
        response: Made with ``stream=True``.
        limit: In bytes, after decompression.

    Returns:
        The body; longer than the limit only where it had more.

    Raises:
        HTTPError: The body broke off, or took too long.
    """
    body = bytearray()
    until = time.monotonic() + ANSWER_SECONDS
    while chunk := response.raw.read1(64 * 1024, decode_content=True):
        body += chunk
        if len(body) > limit:
            break
        if time.monotonic() > until:
            raise AnswerTimeoutError("the answer took too long")
    return bytes(body[: limit + 1])


def refuse_inward(base_url: str) -> AddressCheck:
    """Make the rule that a public service cannot send us to an address inside the building.

    Args:
        base_url: Of the service.

    Returns:
        A check that refuses addresses which are not public, unless the service's own is none either.
    """
    host, port = urlsplit(base_url).hostname or "", origin(base_url)[2]

    @cache
    def service_is_inside() -> bool:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            return False
        return any(not _is_public(str(info[4][0])) for info in found)

    def check(address: str) -> None:
        if not _is_public(address) and not service_is_inside():
            raise QureRejectedError(
                "A file's address leads to a private network although the service is a public one, so it was not asked "
                "for. Tell Qure's support."
            )

    return check


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.split("%", 1)[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    return bool((mapped or ip).is_global)


class _NoCookies(RequestsCookieJar):
    """Keeps nothing: the service knows no cookies, and a jar is not safe to share among threads."""

    def set_cookie(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs


class _Adapter(HTTPAdapter):
    """Sends every request with the connection's timeouts, trust and proxies, whatever else it was asked to."""

    def __init__(self, line: Line, parallel: int, check_address: AddressCheck | None) -> None:
        self._line = line
        self._check_address = check_address
        self._proxies: dict[tuple[str, str], str | None] = {}
        super().__init__(pool_maxsize=parallel)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _pool_classes(self._line.read_timeout, self._check_address)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _pool_classes(self._line.read_timeout, None)
        return manager

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        del verify, proxies
        url = urlsplit(request.url or "")
        proxy = self._proxy_for(url.scheme, url.netloc)
        return super().send(
            request,
            stream=stream,
            timeout=timeout or (self._line.connect_timeout, self._line.read_timeout),
            verify=self._line.trust,
            cert=cert,
            proxies={url.scheme: proxy} if proxy else {},
        )

    def _proxy_for(self, scheme: str, address: str) -> str | None:
        """Look into the environment once for each address: that takes as long as half a small download."""
        if (scheme, address) not in self._proxies:
            self._proxies[scheme, address] = self._line.proxy_for(f"{scheme}://{address}/")
        return self._proxies[scheme, address]


def _pool_classes(idle_timeout: float, check_address: AddressCheck | None) -> dict[str, type[HTTPConnectionPool]]:
    """Make connections whose timeout for sending a block is the idle one.

    urllib3 sends a body under the connect timeout, which would end an upload over a slow line.
    """

    class _Connection(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            _check_peer(self, check_address)

        def request(self, *args: Any, **kwargs: Any) -> None:
            if self.sock is None:
                self.connect()
            self.timeout = idle_timeout
            super().request(*args, **kwargs)

    class _SecureConnection(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            _check_peer(self, check_address)

        def request(self, *args: Any, **kwargs: Any) -> None:
            self.timeout = idle_timeout
            super().request(*args, **kwargs)

    class _Pool(HTTPConnectionPool):
        ConnectionCls = _Connection

    class _SecurePool(HTTPSConnectionPool):
        ConnectionCls = _SecureConnection

    return {"http": _Pool, "https": _SecurePool}


def _check_peer(connection: HTTPConnection, check_address: AddressCheck | None) -> None:
    if check_address is None or connection.sock is None:
        return
    try:
        check_address(connection.sock.getpeername()[0])
    except QureRejectedError:
        connection.close()
        raise


class _KeepAddressesOut(logging.Filter):
    """Drops what urllib3 says of our requests: it writes paths and queries, which hold UIDs and grant access."""

    def filter(self, record: logging.LogRecord) -> bool:
        del record
        return not _quiet.get()


logging.getLogger("urllib3.connectionpool").addFilter(_KeepAddressesOut())
