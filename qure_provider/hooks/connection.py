"""Connections as data: what a user entered, checked, with the defaults filled in; first of all that to Qure."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import SplitResult, urlsplit

from qure_provider import connection_forms
from qure_provider.api.errors import QureSettingsError
from qure_provider.api.model import ResultsVersion

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 100_000_000
"""What the vendor recommends that an upload request does not exceed (documentation.qure.ai, Uploading the Dicoms)."""

DEFAULT_PORTS: Mapping[str, int] = {"http": 80, "https": 443}

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})

_Choice = TypeVar("_Choice", bound=StrEnum)
_Number = TypeVar("_Number", int, float)


class UploadDialect(StrEnum):
    """How the files of an upload are wrapped."""

    FORM_DATA = "form-data"
    """``multipart/form-data`` (OpenAPI, upload)."""
    RELATED = "related"
    """``multipart/related; type=application/dicom`` (documentation.qure.ai, Uploading the Dicoms)."""


class AirflowConnection(Protocol):
    """The fields of an Airflow connection that are read, whichever of Airflow's classes it is."""

    conn_id: Any
    host: Any
    schema: Any
    port: Any
    password: Any
    extra: Any


@dataclass(frozen=True, slots=True)
class QureConnection:
    """Where the service is and how to talk to it.

    Attributes:
        conn_id: Its name in Airflow.
        base_url: The root that Qure issued, ending in ``/``.
        token: Without the word ``Token``.
        source: The ``Source`` header; empty where none is set (the vendor's older pages know none).
        verify: Whether the server's certificate is checked.
        ca_bundle: PEM file or folder of the authorities to trust; empty for ``REQUESTS_CA_BUNDLE``,
            ``CURL_CA_BUNDLE`` or ``SSL_CERT_FILE``, else those that come with certifi.
        proxies: URL scheme to proxy URL; empty for the environment's ``https_proxy`` and its like.
        connect_timeout: Seconds to wait for a connection.
        read_timeout: Seconds without a single byte, in either direction, after which a request is given up. A request
            as a whole has no limit.
        requests_per_second: Ceiling on questions for results in one triggerer: the total that was configured, divided
            by the number of triggerers.
        upload_dialect: How uploads are wrapped.
        xray_results: Which results endpoint is asked for X-rays.
        max_request_bytes: Largest body of an upload request, in bytes on the wire.
        parallel_uploads: Upload requests under way at once.
        max_answer_bytes: Largest answer that is read, in bytes.
        max_asset_bytes: Largest file of a result that is downloaded, in bytes.
        max_assets: Most files of one result that are downloaded.
        max_redirects: How often one request is sent elsewhere before it is given up.
    """

    conn_id: str
    base_url: str
    token: str = field(repr=False)
    source: str = field(default="", repr=False)
    verify: bool = True
    ca_bundle: str = ""
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    connect_timeout: float = 10.0
    read_timeout: float = 120.0
    requests_per_second: float = 10.0
    upload_dialect: UploadDialect = UploadDialect.FORM_DATA
    xray_results: ResultsVersion = ResultsVersion.V2
    max_request_bytes: int = MAX_REQUEST_BYTES
    parallel_uploads: int = 4
    max_answer_bytes: int = 16 * 1024 * 1024
    max_asset_bytes: int = 2 * 1024**3
    max_assets: int = 1000
    max_redirects: int = 3

    @classmethod
    def from_airflow(cls, connection: AirflowConnection) -> QureConnection:
        """Read an Airflow connection of type ``qure``.

        ``host`` holds the base URL. A host alone is taken too, where ``schema`` says ``http`` or ``https``.
        ``password`` holds the token, ``extra`` the other settings by the names of the attributes, and ``triggerers``
        (how many triggerers share ``requests_per_second``) and ``allow_plain_http``. Empty means the default. Texts are
        taken for numbers and booleans, since a connection given as a URI has nothing else.

        Args:
            connection: What Airflow returned.

        Returns:
            The settings.

        Raises:
            QureSettingsError: A field is missing or wrong; the message names it and says what to enter.
        """
        fields = Fields.of(connection, connection_forms.QURE)
        verify, ca_bundle = verification(fields)
        total = fields.number("requests_per_second", 10.0, at_least=0.01, at_most=10_000.0)
        return cls(
            conn_id=fields.conn_id,
            base_url=base_url(connection, fields, "the base URL that Qure issued, such as https://host/path"),
            token=_token(connection, fields),
            source=fields.header("source", fields.text("source")),
            verify=verify,
            ca_bundle=ca_bundle,
            proxies=proxies(fields),
            connect_timeout=fields.number("connect_timeout", 10.0, at_least=0.1, at_most=600.0),
            read_timeout=fields.number("read_timeout", 120.0, at_least=0.1, at_most=3600.0),
            requests_per_second=total / fields.number("triggerers", 1, at_least=1, at_most=1000),
            upload_dialect=fields.choice("upload_dialect", UploadDialect.FORM_DATA),
            xray_results=fields.choice("xray_results", ResultsVersion.V2),
            max_request_bytes=fields.number(
                "max_request_bytes", MAX_REQUEST_BYTES, at_least=1000, at_most=MAX_REQUEST_BYTES
            ),
            parallel_uploads=fields.number("parallel_uploads", 4, at_least=1, at_most=32),
            max_answer_bytes=fields.number("max_answer_bytes", 16 * 1024 * 1024, at_least=1024, at_most=1024**3),
            max_asset_bytes=fields.number("max_asset_bytes", 2 * 1024**3, at_least=1024, at_most=1024**4),
            max_assets=fields.number("max_assets", 1000, at_least=1, at_most=1_000_000),
            max_redirects=fields.number("max_redirects", 3, at_least=0, at_most=20),
        )

    def url(self, path: str) -> str:
        """Put a path of the contract behind the base URL.

        Args:
            path: Relative, as ``qure_provider.api.routes`` gives it.

        Returns:
            The address.
        """
        return self.base_url + path

    @property
    def trust(self) -> str | bool:
        """The certificate authorities to trust: a path, or False where nothing is checked.

        Both clients go by it, so that what uploads can reach is reached by polling too.
        """
        return authorities(self.ca_bundle) if self.verify else False

    def proxy_for(self, url: str) -> str | None:
        """Tell through which proxy a URL is asked for.

        Args:
            url: Any http or https address.

        Returns:
            The proxy's URL: the connection's, else that of the environment, which knows exceptions (``no_proxy``); None
            for none.
        """
        return proxy_for(url, self.proxies)


def origin(url: str) -> tuple[str, str, int]:
    """Tell whom a URL belongs to, as the web does: by scheme, host and port (RFC 6454).

    Args:
        url: An absolute http or https URL.

    Returns:
        Scheme, host in lower case, and port.

    Raises:
        ValueError: If it is no such URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError("not an absolute http or https URL")
    return parts.scheme, parts.hostname.lower(), parts.port or DEFAULT_PORTS[parts.scheme]


def is_loopback(host: str) -> bool:
    """Tell whether a host name stands for this machine itself.

    Args:
        host: Name or address, without port.

    Returns:
        True for ``localhost`` and loopback addresses.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def authorities(ca_bundle: str) -> str:
    """Tell which certificate authorities to trust.

    Args:
        ca_bundle: What the connection says; may be empty.

    Returns:
        Path of a PEM file or folder: the connection's, else the environment's, else the one that comes with certifi.
    """
    import certifi

    variables = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    return ca_bundle or next(filter(None, map(os.environ.get, variables)), None) or certifi.where()


def proxy_for(url: str, own: Mapping[str, str]) -> str | None:
    """Tell through which proxy a URL is asked for.

    Args:
        url: Any http or https address.
        own: URL scheme to proxy URL, as the connection says; may be empty.

    Returns:
        The proxy's URL: the connection's, else that of the environment, which knows exceptions (``no_proxy``); None for
        none.
    """
    scheme = urlsplit(url).scheme
    if own:
        return own.get(scheme)
    from requests.utils import get_environ_proxies

    found = get_environ_proxies(url, no_proxy=None)
    return found.get(scheme) or found.get("all")


class Fields:
    """The extra settings of one connection, with errors that name the field and never repeat its value.

    Empty means the default. Texts are taken for numbers and booleans, since a connection given as a URI has nothing
    else.

    Args:
        conn_id: The connection's name in Airflow.
        values: What was entered.
        kind: Class of the errors.
    """

    def __init__(self, conn_id: str, values: Mapping[str, Any], kind: type[Exception] = QureSettingsError) -> None:
        self.conn_id = conn_id
        self._values = values
        self._kind = kind

    @classmethod
    def of(
        cls, connection: AirflowConnection, form: Collection[str], kind: type[Exception] = QureSettingsError
    ) -> Fields:
        """Read the extra settings of an Airflow connection.

        Args:
            connection: What Airflow returned.
            form: The names of the fields that there are: one that is misspelt would be left out in silence.
            kind: Class of the errors.

        Raises:
            Exception: Of that class, if they are no JSON object, or have a field that there is not.
        """
        # Not through Airflow's own property: it masks by a blocking call, which has no place in a triggerer's event
        # loop.
        problem = f"Connection {connection.conn_id}, field extra: must be a JSON object."
        try:
            extra = json.loads(connection.extra or "{}")
        except ValueError:
            raise kind(problem) from None
        if not isinstance(extra, dict):
            raise kind(problem)
        if unknown := sorted(extra.keys() - {*form}):
            raise kind(
                f"Connection {connection.conn_id}, field extra: there is no {', '.join(map(repr, unknown))}. "
                f"There are {', '.join(sorted(form))}."
            )
        return cls(str(connection.conn_id), extra, kind)

    def error(self, name: str, problem: str) -> Exception:
        """Make an error.

        Args:
            name: Of the field.
            problem: What is wrong with it and what to do, without a final stop.
        """
        return self._kind(f"Connection {self.conn_id}, field {name}: {problem}.")

    def raw(self, name: str) -> Any:
        """Return what was entered, or None for nothing."""
        value = self._values.get(name)
        return None if isinstance(value, str) and not value.strip() else value

    def text(self, name: str) -> str:
        """Return a text without the blanks around it; empty for nothing."""
        value = self.raw(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.error(name, "must be a text")
        return value.strip()

    def header(self, name: str, value: str) -> str:
        """Return what may stand in an HTTP header."""
        if not (value.isascii() and value.isprintable()):
            raise self.error(name, "has characters that cannot be sent in an HTTP header. Copy it anew")
        return value

    def boolean(self, name: str, *, default: bool) -> bool:
        """Return a yes or no."""
        value = self.raw(name)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        text = str(value).strip().lower()
        if text in _TRUE | _FALSE:
            return text in _TRUE
        raise self.error(name, "must be true or false")

    def number(self, name: str, default: _Number, *, at_least: _Number, at_most: _Number) -> _Number:
        """Return a number within its limits, of the default's kind."""
        value = self.raw(name)
        if value is None:
            return default
        kind: Callable[[Any], _Number] = type(default)
        try:
            if isinstance(value, bool):
                raise ValueError("no number")
            number = kind(value)
            if number != float(value) or not at_least <= number <= at_most:
                raise ValueError("out of range")
        except (TypeError, ValueError, OverflowError):
            words = "a whole number" if isinstance(default, int) else "a number"
            raise self.error(name, f"must be {words} from {at_least} to {at_most}") from None
        return number

    def choice(self, name: str, default: _Choice) -> _Choice:
        """Return one of the default's class."""
        value = self.raw(name)
        if value is None:
            return default
        try:
            return type(default)(value)
        except ValueError:
            raise self.error(name, f"must be one of {', '.join(type(default))}") from None


def _token(connection: AirflowConnection, fields: Fields) -> str:
    token = (connection.password or "").strip()
    if not token:
        raise fields.error("password", "is empty. Enter the token that Qure issued")
    if any(character.isspace() for character in token):
        raise fields.error("password", "must be the token alone, without the word Token and without blanks")
    return fields.header("password", token)


def verification(fields: Fields) -> tuple[bool, str]:
    """Read whether certificates are checked, and against which authorities.

    Args:
        fields: Of the connection; ``verify`` and ``ca_bundle`` are read.

    Returns:
        Whether they are, and the path of a PEM file or folder, which may be empty.

    Raises:
        Exception: Of the fields' class, if the two contradict each other or the path is not there.
    """
    verify = fields.boolean("verify", default=True)
    ca_bundle = fields.text("ca_bundle")
    if ca_bundle and not verify:
        raise fields.error("ca_bundle", "a CA bundle has no use while TLS verification is off. Remove one of the two")
    if ca_bundle and not Path(ca_bundle).exists():
        raise fields.error("ca_bundle", "there is no such file on this machine. Workers and triggerers need it too")
    if not verify:
        log.warning("TLS verification is off: connection=%s", fields.conn_id)
    return verify, ca_bundle


def verdict_of(error: Exception, conn_id: str) -> tuple[bool, str]:
    """Return what a connection's test says of an error; Airflow tests it under a name that it makes up.

    Args:
        error: What is wrong.
        conn_id: That name.

    Returns:
        False, and what to set.
    """
    return False, str(error).replace(f"Connection {conn_id}, field ", "Field ")


def base_url(connection: AirflowConnection, fields: Fields, expected: str) -> str:
    """Read the address of a service from ``host``, or from ``schema``, ``host`` and ``port``.

    Args:
        connection: What Airflow returned.
        fields: Its extra settings; ``allow_plain_http`` is read.
        expected: What is to be entered, in words.

    Returns:
        The address, ending in ``/``.

    Raises:
        Exception: Of the fields' class, if it is none, or plain http to another machine.
    """
    host, schema = (connection.host or "").strip(), (connection.schema or "").strip().lower()
    if not host:
        raise fields.error("host", f"is empty. Enter {expected}")
    if "://" not in host:
        if schema not in DEFAULT_PORTS:
            raise fields.error("host", "has no scheme. Enter the whole base URL, beginning with https://")
        host = f"{schema}://{host}"
    try:
        parts = urlsplit(host)
        port = parts.port or connection.port
    except ValueError:
        raise fields.error("host", f"is not a URL. Enter {expected}") from None
    _check_base_url(host, parts, fields, expected)
    if schema and schema != parts.scheme:
        raise fields.error("schema", "contradicts the scheme of the base URL. Leave it empty")
    if connection.port and port != connection.port:
        raise fields.error("port", "contradicts the port of the base URL. Enter the same one, or leave it empty")
    name = parts.hostname or ""
    if parts.scheme == "http" and not is_loopback(name):
        if not fields.boolean("allow_plain_http", default=False):
            raise fields.error(
                "host",
                "is plain http to another machine, which anybody on the way can read. Enter an https:// URL, or set "
                "allow_plain_http if the network itself is protected",
            )
        log.warning("Patient data and credentials travel without TLS: connection=%s", connection.conn_id)
    netloc = f"[{name}]" if ":" in name else name
    if port and port != DEFAULT_PORTS[parts.scheme]:
        netloc += f":{port}"
    return f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}/"


def _check_base_url(text: str, parts: SplitResult, fields: Fields, expected: str) -> None:
    if parts.scheme not in DEFAULT_PORTS:
        raise fields.error("host", "must begin with https://")
    if not parts.hostname:
        raise fields.error("host", f"names no host. Enter {expected}")
    if parts.username is not None or parts.password is not None:
        raise fields.error("host", "must not hold credentials. Enter them in the connection's own fields")
    if parts.query or parts.fragment:
        raise fields.error("host", "must end with the path, without ? or #")
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise fields.error("host", "has characters that no URL has")


def proxies(fields: Fields) -> Mapping[str, str]:
    """Read proxies, entered as one URL or as JSON.

    Args:
        fields: Of the connection; ``proxies`` is read.

    Returns:
        URL scheme to proxy URL; empty where nothing was entered.

    Raises:
        Exception: Of the fields' class, if one is no URL.
    """
    value = fields.raw("proxies")
    hint = 'must be a proxy URL such as http://proxy:3128, or JSON such as {"https": "http://proxy:3128"}'
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            raise fields.error("proxies", hint) from None
    if value is None or value == {}:
        return {}
    if isinstance(value, str):
        value = dict.fromkeys(DEFAULT_PORTS, value.strip())
    if not isinstance(value, dict) or not set(value) <= set(DEFAULT_PORTS):
        raise fields.error("proxies", hint)
    for proxy in value.values():
        try:
            origin(proxy)
        except (ValueError, AttributeError, TypeError):
            raise fields.error("proxies", hint) from None
    return value
