"""A web service of the hospital: where it is, how we show who we are, and what its refusals mean."""

from __future__ import annotations

import base64
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote_plus

import requests
from airflow.sdk import BaseHook

from qure_provider.api.errors import QureSettingsError, QureTransientError
from qure_provider.hooks.connection import (
    AirflowConnection,
    Fields,
    authorities,
    base_url,
    is_loopback,
    origin,
    proxies,
    proxy_for,
    verification,
)
from qure_provider.hooks.receiver import (
    ReceiverError,
    ReceiverRefusedError,
    ReceiverSettingsError,
    ReceiverUnavailableError,
)
from qure_provider.hooks.transport import LineSession, failures_named, read_at_most

MAX_ANSWER_BYTES = 64 * 1024 * 1024
TEST_SECONDS = 9.0
"""A connection's test runs inside Airflow's API server."""

_DENIED = frozenset({401, 403})
_PASSING = frozenset({408, 409, 423, 425, 429})
_NOT_OFFERED = frozenset({404, 405, 410, 415, 501, 505})
_TOKEN_ERRORS = frozenset(
    {"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type"}
    | {"invalid_scope"}
)
"""RFC 6749, 5.2."""
_EARLY_SECONDS = 30.0
_UNSTATED_LIFE_SECONDS = 60.0


class Authentication(StrEnum):
    """How we show who we are."""

    NONE = "none"
    BASIC = "basic"
    BEARER = "bearer"
    OAUTH2 = "oauth2"
    """Client credentials (RFC 6749, 4.4), the client authenticated by Basic."""


class WebAirflowConnection(AirflowConnection, Protocol):
    """The fields of an Airflow connection to a web service."""

    login: Any


@dataclass(frozen=True, slots=True)
class WebConnection:
    """Where a web service is and how to talk to it.

    Attributes:
        conn_id: Its name in Airflow.
        base_url: Its root, ending in ``/``.
        authentication: How we show who we are.
        login: User, or OAuth2 client id.
        secret: Password, bearer token or OAuth2 client secret.
        token_url: The OAuth2 token endpoint.
        scope: The OAuth2 scope; may be empty.
        verify: Whether the server's certificate is checked.
        ca_bundle: PEM file or folder of the authorities to trust; empty for the environment's.
        proxies: URL scheme to proxy URL; empty for the environment's.
        connect_timeout: Seconds to wait for a connection.
        read_timeout: Seconds without a single byte, in either direction, after which a request is given up.
    """

    conn_id: str
    base_url: str
    authentication: Authentication = Authentication.NONE
    login: str = ""
    secret: str = field(default="", repr=False)
    token_url: str = ""
    scope: str = ""
    verify: bool = True
    ca_bundle: str = ""
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    connect_timeout: float = 10.0
    read_timeout: float = 60.0

    @classmethod
    def from_airflow(cls, connection: WebAirflowConnection, fields: Fields, expected: str) -> WebConnection:
        """Read an Airflow connection.

        ``host`` holds the base URL, ``login`` and ``password`` user and secret, ``extra`` the rest by the names of the
        attributes (``auth`` for ``authentication``), and ``allow_plain_http``.

        Args:
            connection: What Airflow returned.
            fields: Its extra settings.
            expected: What is to be entered as base URL, in words.

        Returns:
            The settings.

        Raises:
            ReceiverSettingsError: A field is missing or wrong; the message names it and says what to enter.
        """
        verify, ca_bundle = verification(fields)
        given = Authentication.BASIC if (connection.login or "").strip() else Authentication.NONE
        authentication = fields.choice("auth", given)
        login, secret = (connection.login or "").strip(), connection.password or ""
        _check_credentials(fields, authentication, login, secret)
        return cls(
            conn_id=fields.conn_id,
            base_url=base_url(connection, fields, expected),
            authentication=authentication,
            login=login,
            secret=secret,
            token_url=_token_url(fields) if authentication is Authentication.OAUTH2 else "",
            scope=fields.text("scope"),
            verify=verify,
            ca_bundle=ca_bundle,
            proxies=proxies(fields),
            connect_timeout=fields.number("connect_timeout", 10.0, at_least=0.1, at_most=600.0),
            read_timeout=fields.number("read_timeout", 60.0, at_least=0.1, at_most=3600.0),
        )

    @property
    def trust(self) -> str | bool:
        """The certificate authorities to trust: a path, or False where nothing is checked."""
        return authorities(self.ca_bundle) if self.verify else False

    def proxy_for(self, url: str) -> str | None:
        """Tell through which proxy a URL is asked for; None for none."""
        return proxy_for(url, self.proxies)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service said.

    Attributes:
        status: The HTTP status.
        headers: By name, in any case.
        body: At most ``MAX_ANSWER_BYTES``, and one byte more where it was longer.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        """The body as JSON; None where it is none, as with a number that JSON does not know (NaN, infinities)."""
        try:
            return json.loads(self.body, parse_constant=_finite, parse_float=_finite)
        except (ValueError, RecursionError):
            return None


class WebSession(LineSession):
    """A session that shows who we are to the service's own scheme, host and port only.

    Args:
        connection: Where the service is.
        operator: Named in the User-Agent; may be empty.
        parallel: Requests under way at once.
    """

    def __init__(self, connection: WebConnection, *, operator: str = "", parallel: int = 1) -> None:
        super().__init__(connection, operator=operator, parallel=parallel)
        self._connection = connection
        self._origin = origin(connection.base_url)
        self._tokens = _Tokens(connection) if connection.authentication is Authentication.OAUTH2 else None
        self.auth = self._authorize

    def ask(self, what: str, method: str, path: str, **options: Any) -> Answer:
        """Send one request and read the answer, whatever it says.

        Redirects are not followed. Where an access token is no longer taken, a new one is asked for, once.

        Args:
            what: What is being done, in fixed words to begin an error with.
            method: How.
            path: Behind the base URL.
            options: As for ``requests.request``; the body must be one that can be sent twice.

        Returns:
            The answer.

        Raises:
            ReceiverSettingsError: A certificate, a proxy or the token endpoint wants something mended.
            ReceiverUnavailableError: There was no answer. Whether the request was carried out is then not known.
        """
        answer = self._ask_once(what, method, path, options)
        if answer.status == requests.codes.unauthorized and self._tokens is not None:
            self._tokens.forget()
            answer = self._ask_once(what, method, path, options)
        return answer

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Take the credentials off a request that was redirected to another origin."""
        del response
        prepared_request.headers.pop("Authorization", None)
        self._authorize(prepared_request)

    def close(self) -> None:
        """Close its connections."""
        super().close()
        if self._tokens is not None:
            self._tokens.close()

    def _ask_once(self, what: str, method: str, path: str, options: Mapping[str, Any]) -> Answer:
        url = self._connection.base_url + path
        with (
            receiver_failures(what),
            self.request(method, url, stream=True, allow_redirects=False, **options) as response,
        ):
            return Answer(response.status_code, response.headers, read_at_most(response, MAX_ANSWER_BYTES))

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if origin(request.url or "") == self._origin:
            request.headers.update(self._credentials())
        return request

    def _credentials(self) -> dict[str, str]:
        connection = self._connection
        match connection.authentication:
            case Authentication.BASIC:
                return {"Authorization": _basic(connection.login, connection.secret)}
            case Authentication.BEARER:
                return {"Authorization": f"Bearer {connection.secret}"}
            case Authentication.OAUTH2 if self._tokens is not None:
                return {"Authorization": f"Bearer {self._tokens.current()}"}
        return {}


class WebHook(BaseHook):
    """A hook to a web service of the hospital, with one session.

    It may be used in a ``with`` block, which closes its connections.

    Args:
        operator: Class name of the operator, for the User-Agent.
    """

    def __init__(self, *, operator: str) -> None:
        super().__init__()
        self._operator = operator
        self._session: WebSession | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def web(self) -> WebConnection:
        """Where it is, and who we are there."""
        raise NotImplementedError

    def close(self) -> None:
        """Close its connections; using the hook again opens new ones."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def get_conn(self) -> WebSession:
        """Return the session that the hook uses, for requests that it has no method for."""
        if self._session is None:
            self._session = WebSession(self.web, operator=self._operator)
        return self._session


class _Tokens:
    """The access token of the moment, asked for when there is none or it is about to end."""

    def __init__(self, connection: WebConnection) -> None:
        self._connection = connection
        self._session = LineSession(connection)
        self._lock = threading.Lock()
        self._token = ""
        self._good_until = 0.0

    def current(self) -> str:
        with self._lock:
            if not self._token or time.monotonic() >= self._good_until:
                self._token, seconds = self._ask()
                self._good_until = time.monotonic() + seconds - min(_EARLY_SECONDS, seconds / 2)
            return self._token

    def forget(self) -> None:
        with self._lock:
            self._token = ""

    def close(self) -> None:
        self._session.close()

    def _ask(self) -> tuple[str, float]:
        what = "Asking for an access token"
        connection = self._connection
        form = {"grant_type": "client_credentials"} | ({"scope": connection.scope} if connection.scope else {})
        headers = {
            "Accept": "application/json",
            "Authorization": _basic(quote_plus(connection.login), quote_plus(connection.secret)),
        }
        with (
            receiver_failures(what),
            self._session.post(
                connection.token_url, data=form, headers=headers, stream=True, allow_redirects=False
            ) as response,
        ):
            answer = Answer(response.status_code, response.headers, read_at_most(response, MAX_ANSWER_BYTES))
        content = answer.json if isinstance(answer.json, dict) else {}
        token, seconds = content.get("access_token"), content.get("expires_in")
        if answer.status == requests.codes.ok and isinstance(token, str) and token.isascii() and token.isprintable():
            return token, float(seconds) if isinstance(seconds, int | float) else _UNSTATED_LIFE_SECONDS
        if answer.status in _PASSING or answer.status >= requests.codes.server_error:
            raise ReceiverUnavailableError(f"{what} failed: the token endpoint answered {answer.status}.")
        said = content.get("error")
        reason = f" ({said})" if said in _TOKEN_ERRORS else ""
        raise ReceiverSettingsError(
            f"{what} failed: the token endpoint answered {answer.status}{reason} and gave none. Check the connection's "
            "token URL, client id, client secret and scope."
        )


@contextmanager
def receiver_failures(what: str) -> Iterator[None]:
    """Turn what the network raises into a receiver's errors, and keep addresses out of the logs.

    Args:
        what: What is being done, in fixed words to begin a message with.

    Raises:
        ReceiverSettingsError: A person has to mend something.
        ReceiverUnavailableError: It may work later.
    """
    try:
        with failures_named(what):
            yield
    except QureSettingsError as error:
        raise ReceiverSettingsError(str(error)) from None
    except QureTransientError as error:
        raise ReceiverUnavailableError(str(error)) from None


def refusal(what: str, status: int, said: str = "") -> ReceiverError:
    """Turn an answer that is no success into the error that it means.

    A conflict (409) is one of several writers at the same moment, and passes.

    Args:
        what: What was being done, in fixed words to begin the message with.
        status: The HTTP status.
        said: What the service named as the reason, without patient data; may be empty.

    Returns:
        The error, to be raised.
    """
    answered = f"{what} failed: the server answered {status}{f' ({said})' if said else ''}."
    if status in _DENIED:
        return ReceiverSettingsError(f"{answered} Check the connection's credentials and what they are allowed to do.")
    if status in _PASSING or (status >= requests.codes.server_error and status not in _NOT_OFFERED):
        return ReceiverUnavailableError(answered)
    if status < requests.codes.bad_request or status in _NOT_OFFERED:
        return ReceiverSettingsError(f"{answered} Check the connection's base URL, and whether the server offers this.")
    return ReceiverRefusedError(answered)


def within_test_time(verdict: Callable[[], tuple[bool, str]]) -> tuple[bool, str]:
    """Run a connection's test, but no longer than Airflow's API server can wait for it.

    Args:
        verdict: Makes the test. Errors of receivers are verdicts too.

    Returns:
        Whether all is well, and what is or what to set.
    """
    verdicts: list[tuple[bool, str]] = []

    def run() -> None:
        try:
            verdicts.append(verdict())
        except ReceiverError as error:
            verdicts.append((False, str(error)))

    thread = threading.Thread(target=run, name="receiver-test", daemon=True)
    thread.start()
    thread.join(TEST_SECONDS)
    if not verdicts:
        return False, f"No whole answer within {TEST_SECONDS:.0f} seconds. Check base URL, proxies and firewall."
    return verdicts[0]


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("no number of JSON")
    return number


def _basic(login: str, secret: str) -> str:
    return f"Basic {base64.b64encode(f'{login}:{secret}'.encode()).decode('ascii')}"


def _check_credentials(fields: Fields, authentication: Authentication, login: str, secret: str) -> None:
    if authentication is Authentication.NONE:
        if secret:
            raise fields.error("auth", "is none although there is a password. Choose basic, bearer or oauth2")
        return
    if not login and authentication is not Authentication.BEARER:
        raise fields.error("login", f"is empty, which auth {authentication} needs")
    if ":" in login and authentication is Authentication.BASIC:
        raise fields.error("login", "must hold no colon")
    if not secret:
        raise fields.error("password", f"is empty, which auth {authentication} needs")
    if authentication is Authentication.BEARER and any(
        character.isspace() for character in fields.header("password", secret)
    ):
        raise fields.error("password", "must be the token alone, without the word Bearer and without blanks")


def _token_url(fields: Fields) -> str:
    url = fields.text("token_url")
    try:
        scheme, host, _ = origin(url)
    except ValueError:
        raise fields.error(
            "token_url", "is not a URL. Enter the OAuth2 token endpoint, beginning with https://"
        ) from None
    if scheme == "http" and not is_loopback(host) and not fields.boolean("allow_plain_http", default=False):
        raise fields.error("token_url", "is plain http to another machine. Enter an https:// URL")
    return url
