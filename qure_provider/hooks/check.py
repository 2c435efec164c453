"""What the Test button of a connection says."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable

from qure_provider.api.answers import RawAnswer, parse_result
from qure_provider.api.errors import QureError, QureTransientError
from qure_provider.api.model import Outcome, ResourceRef, ResultsVersion, Route

PROBE = ResourceRef(f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, 'airflow-provider-qure/probe').int}", Route.CT)
"""A series that nobody has. Asking for its result changes nothing, and needs token and Source to be told "not
uploaded".

Which request proves a token without side effects is not stated anywhere. The CT endpoint is asked because its 403 means
the Source alone, while that of X-ray v2 may also mean the image (OpenAPI, results v2).
"""

PROBE_TIMEOUT = (4.0, 5.0)
"""Seconds to connect, and to wait for the next byte."""

_SUCCESS = (b'"success"', b'"sucess"')
"""One of them is in the service's own 404 (OpenAPI, results; it has both spellings), not in that of another server."""

_LIMIT = 9.0
"""Seconds in all: the test runs inside Airflow's API server."""


def check(ask: Callable[[], RawAnswer]) -> tuple[bool, str]:
    """Ask the service, and say in a sentence what came of it.

    Args:
        ask: Asks for the result of ``PROBE``, once.

    Returns:
        Whether all is well, and what is or what to set.
    """
    verdicts: list[tuple[bool, str]] = []
    thread = threading.Thread(target=lambda: verdicts.append(_verdict(ask)), name="qure-test", daemon=True)
    thread.start()
    thread.join(_LIMIT)
    if not verdicts:
        return False, f"No whole answer within {_LIMIT:.0f} seconds. Check base URL, proxies and firewall."
    return verdicts[0]


def _verdict(ask: Callable[[], RawAnswer]) -> tuple[bool, str]:
    try:
        raw = ask()
    except QureTransientError as error:
        return False, f"{error} Check base URL, proxies and firewall."
    except QureError as error:
        return False, str(error)
    try:
        answer = parse_result(raw, PROBE.route, ResultsVersion.V1)
    except QureError as error:
        return False, str(error)
    if answer.outcome is not Outcome.NOT_UPLOADED:
        return True, f"The service answers ({raw.status}), though not as documented for a series that nobody has."
    if not any(key in raw.body for key in _SUCCESS):
        return False, "The host answers with 404, but not as the Qure service does. Check the path of the base URL."
    return True, "The service answers and takes token and Source."
