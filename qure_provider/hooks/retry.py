"""How often, and how soon, a request is tried again before the failure goes up to Airflow's own retries."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_before_delay
from tenacity.nap import sleep as nap
from tenacity.wait import wait_random_exponential

from qure_provider.api.errors import QureTransientError
from qure_provider.hooks.download import ExpiredUrlError

log = logging.getLogger(__name__)

MAX_TRIES = 4

MAX_WAIT = 20.0
"""Seconds. Where the service asks for a longer pause, Airflow keeps it, which holds no worker."""

MAX_TOTAL = 60.0
"""Seconds after which a request without much of a body is not begun again."""

BACKOFF = wait_random_exponential(multiplier=1, max=15)
"""Seconds between tries: at random up to 1, 2, 4, so that many tasks do not come back at once."""


def retrying(
    what: str, *, tries: int | None = None, is_large: bool = False, sleep: Callable[[float], None] = nap
) -> Retrying:
    """Make the loop around a request.

    Args:
        what: What is being done, in fixed words.
        tries: How often at most; None for ``MAX_TRIES``.
        is_large: Whether a try may take long because of its size; then only their number is limited.
        sleep: Waits for so many seconds.

    Returns:
        A callable that takes the request as a function, and raises the last try's error.
    """
    few = stop_after_attempt(MAX_TRIES if tries is None else tries)
    return Retrying(
        retry=retry_if_exception(_may_pass_soon),
        stop=few if is_large else few | stop_before_delay(MAX_TOTAL),
        wait=_wait,
        before_sleep=lambda state: _tell(what, state),
        sleep=sleep,
        reraise=True,
    )


def _may_pass_soon(error: BaseException) -> bool:
    if not isinstance(error, QureTransientError) or isinstance(error, ExpiredUrlError):
        return False
    return error.retry_after is None or error.retry_after <= MAX_WAIT


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, QureTransientError) else None
    return BACKOFF(state) if asked is None else asked


def _tell(what: str, state: RetryCallState) -> None:
    log.warning(
        "%s is tried again: try=%d wait_seconds=%.1f reason=%s",
        what,
        state.attempt_number,
        state.upcoming_sleep,
        state.outcome.exception() if state.outcome else None,
    )
