"""The three kinds of errors, and nothing else, that talking to the service raises."""

from __future__ import annotations


class QureError(Exception):
    """Anything that went wrong between us and the service. Only its three subclasses are raised."""


class QureSettingsError(QureError):
    """Mend your settings: no retry can help until a person changes the connection or the account."""


class QureTransientError(QureError):
    """Try later: the same request may well succeed.

    Args:
        message: What happened, and to which step.
        retry_after: Seconds the service asked us to wait, or None where it did not say.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QureRejectedError(QureError):
    """Never will work: the same request will always be refused, so it is recorded and not retried."""
