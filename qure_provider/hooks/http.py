"""What the two clients have in common on the wire: addresses, headers and redirects."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any
from urllib.parse import urljoin

from qure_provider import __version__
from qure_provider.api.errors import QureRejectedError
from qure_provider.api.model import ResourceRef
from qure_provider.api.routes import compute_path, results_path
from qure_provider.hooks.connection import QureConnection, origin

REDIRECTS = frozenset({301, 302, 303, 307, 308})
_METHOD_KEEPING = frozenset({307, 308})
_NOT_IN_A_TOKEN = re.compile(r"[^A-Za-z0-9._-]+")


@cache
def user_agent(operator: str) -> str:
    """Name who asks: the provider, Airflow, the operator and Python, each with its version.

    The vendor wants every request to carry a User-Agent (docs.qure.ai, Authentication and Headers).

    Args:
        operator: Class name of the operator or sensor; empty where the hook is used by itself.

    Returns:
        The header's value.
    """
    from requests_toolbelt.utils.user_agent import UserAgentBuilder

    extras = [("apache-airflow", version("apache-airflow"))]
    if operator:
        extras.append(("operator", _NOT_IN_A_TOKEN.sub("-", operator)))
    builder: Any = UserAgentBuilder("airflow-provider-qure", __version__)  # type: ignore[no-untyped-call]
    return str(builder.include_extras(extras).include_implementation().build())


def credentials(connection: QureConnection) -> dict[str, str]:
    """Give the headers that prove who asks (docs.qure.ai, Authentication and Headers).

    Args:
        connection: Whose.

    Returns:
        ``Authorization``, and ``Source`` where one is set.
    """
    headers = {"Authorization": f"Token {connection.token}"}
    if connection.source:
        headers["Source"] = connection.source
    return headers


def results_url(connection: QureConnection, ref: ResourceRef) -> str:
    """Tell where a resource's result is asked for.

    Args:
        connection: Of the service.
        ref: The image or series.

    Returns:
        The address.

    Raises:
        QureRejectedError: Its UID cannot be one.
    """
    return _url(connection, lambda: results_path(ref, connection.xray_results))


def compute_url(connection: QureConnection, series_instance_uid: str) -> str:
    """Tell where a series is asked to be computed.

    Args:
        connection: Of the service.
        series_instance_uid: Which.

    Returns:
        The address.

    Raises:
        QureRejectedError: Its UID cannot be one.
    """
    return _url(connection, lambda: compute_path(series_instance_uid))


def _url(connection: QureConnection, path: Callable[[], str]) -> str:
    try:
        return connection.url(path())
    except ValueError as error:
        raise QureRejectedError(str(error)) from None


def redirect_within(url: str, method: str, status: int, location: str | None) -> str | None:
    """Tell where a redirect may be followed to with our credentials.

    Only to the same scheme, host and port: the vendor's samples follow redirects, which a missing or surplus slash
    brings about. A POST is followed only where it stays a POST.

    Args:
        url: What was asked for.
        method: How.
        status: What it was answered with.
        location: The answer's ``Location``.

    Returns:
        Where to ask next; None where the answer has to stand as it is.
    """
    if status not in REDIRECTS or not location or (method != "GET" and status not in _METHOD_KEEPING):
        return None
    try:
        target = urljoin(url, location)
        return target if origin(target) == origin(url) else None
    except ValueError:
        return None
