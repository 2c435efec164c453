"""What all our operators share."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, RetryPolicy

from qure_provider.retries import QureRetryPolicy


class QureOperator(BaseOperator):
    """Base of the operators: it retries, by the kind of the error, unless the DAG says otherwise.

    Args:
        qure_conn_id: The Qure connection.
        retries: How often; every step can be repeated at any point.
        retry_delay: Before the first retry, where the error names no time itself.
        retry_exponential_backoff: By which factor the delay grows.
        max_retry_delay: How long it grows to.
        retry_policy: Which errors are retried.
        kwargs: As for every operator.
    """

    def __init__(
        self,
        *,
        qure_conn_id: str = "qure_default",
        retries: int = 3,
        retry_delay: timedelta | float = timedelta(seconds=30),
        retry_exponential_backoff: float = 2.0,
        max_retry_delay: timedelta | float = timedelta(minutes=10),
        retry_policy: RetryPolicy | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            retries=retries,
            retry_delay=retry_delay,
            retry_exponential_backoff=retry_exponential_backoff,
            max_retry_delay=max_retry_delay,
            retry_policy=retry_policy or QureRetryPolicy(),
            **kwargs,
        )
        self.qure_conn_id = qure_conn_id


def as_bool(value: bool | str) -> bool:
    """Return a flag that may come as text, from a rendered template."""
    return value if isinstance(value, bool) else value.strip().lower() in {"true", "1", "yes"}
