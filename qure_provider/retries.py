"""Which errors of a task are retried, and the error of a step that is only partly done."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from airflow.sdk import RetryDecision, RetryPolicy
from airflow.sdk.definitions.context import Context

from qure_provider.api.errors import QureRejectedError, QureSettingsError, QureTransientError
from qure_provider.settings import IdentityPolicyError


class StepIncompleteError(Exception):
    """Some of a step's work failed; all the rest was done and recorded.

    Args:
        step: What was tried.
        failures: A pseudonym of each part that failed, and its error.
        of: How many parts there were.
    """

    def __init__(self, step: str, failures: Iterable[tuple[str, Exception]], of: int) -> None:
        failed = list(failures)
        shown = "; ".join(f"{ref}: {error}" for ref, error in failed[:5])
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        super().__init__(f"{step} failed for {len(failed)} of {of}: {shown}{more}")
        errors = [error for _, error in failed]
        self.can_retry = any(not isinstance(error, QureRejectedError | QureSettingsError) for error in errors)
        waits = [error.retry_after for error in errors if isinstance(error, QureTransientError)]
        self.retry_after = max((wait for wait in waits if wait is not None), default=None)


class NightUnresolvedError(Exception):
    """The night's summary is written, and names something that needs somebody."""


class QureRetryPolicy(RetryPolicy):
    """Retry what may succeed later, and nothing else.

    A wrong setting, a refusal for good and a night that needs somebody fail at once; an error that named a time to wait
    is retried after it.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Decide by the kind of the error; see the base class."""
        if isinstance(exception, NightUnresolvedError):
            return RetryDecision.fail(reason="it says what is so: see the message for what to do")
        if isinstance(exception, (QureSettingsError, QureRejectedError, IdentityPolicyError)):
            return RetryDecision.fail(reason="no retry can help: see the message for what to change")
        if isinstance(exception, StepIncompleteError) and not exception.can_retry:
            return RetryDecision.fail(reason="no retry can help with what failed: see the message")
        if isinstance(exception, (QureTransientError, StepIncompleteError)) and exception.retry_after is not None:
            return RetryDecision.retry(
                delay=timedelta(seconds=exception.retry_after), reason="the service said when to come back"
            )
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Return nothing: the policy has no settings."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> QureRetryPolicy:
        """Return the policy."""
        return cls()
