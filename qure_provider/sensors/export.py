"""Waiting for an export that is complete."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.definitions.context import Context
from airflow.sdk.exceptions import AirflowSensorTimeout

from qure_provider import settings
from qure_provider.exports import Completeness, judge
from qure_provider.nights import in_night, night_of
from qure_provider.triggers.export import QureExportTrigger


class QureExportSensor(BaseSensorOperator):
    """Wait until an export folder is complete, and return by what it was judged so.

    With ``marker`` or ``expected_files`` these decide; without, a quiet time does. At the limit the folder is taken as
    it is; a folder that is not there by then fails the sensor. It looks once, then defers.

    Args:
        export: The folder: a path or a URL that ``ObjectStoragePath`` understands; ``{night}`` in it becomes the
            night's name, ``{night:YYYYMMDD}`` its date written so.
        quiet_seconds: Complete when nothing was added or changed for so long.
        marker: Complete when a file of this name lies in the folder.
        expected_files: Complete when so many files are there.
        limit_seconds: How long to wait at most, in seconds, from its first try on.
        poll_seconds: Between two looks.
        retries: How often it is tried again after an error.
        kwargs: As for every sensor.

    Returns:
        One of the texts of ``Completeness``.
    """

    template_fields: Sequence[str] = ("export", "marker", "expected_files", "quiet_seconds", "limit_seconds")
    ui_color = "#e9e9e9"

    def __init__(
        self,
        *,
        export: str,
        quiet_seconds: float | str = 60.0,
        marker: str = "",
        expected_files: int | str = 0,
        limit_seconds: float | str = 2 * 3600.0,
        poll_seconds: float = 30.0,
        retries: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(retries=retries, **kwargs)
        if poll_seconds <= 0:
            raise ValueError("poll_seconds must be more than 0")
        self.export = export
        self.quiet_seconds = quiet_seconds
        self.marker = marker
        self.expected_files = expected_files
        self.limit_seconds = limit_seconds
        self.poll_seconds = poll_seconds

    def execute(self, context: Context) -> str:
        """Look once, then wait in the triggerer."""
        rules: dict[str, Any] = {
            "quiet_seconds": float(self.quiet_seconds),
            "marker": self.marker or "",
            "expected_files": int(self.expected_files or 0),
            "limit": self._limit(context),
        }
        export = in_night(self.export, night_of(context, settings.timezone()))
        verdict = judge(export, **rules)
        if verdict is not Completeness.NOT_YET:
            return _accept(verdict)
        return self.defer(
            trigger=QureExportTrigger(export=export, poll_seconds=self.poll_seconds, **rules),
            method_name="resume",
            timeout=timedelta(seconds=max(rules["limit"] - time.time(), 0.0) + 300.0),
        )

    def resume(self, context: Context, event: Any = None) -> str:
        """Take the trigger's judgement.

        Raises:
            ValueError: If the event is empty or not understood.
        """
        try:
            verdict = Completeness(event["completeness"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                "The trigger's event was empty or not understood; the folder is looked at again."
            ) from None
        return _accept(verdict)

    def _limit(self, context: Context) -> float:
        state = context["task_state_store"]
        key = f"limit:{context['dag_run'].clear_number or 0}"
        recorded = state.get(key)
        if isinstance(recorded, float | int):
            return float(recorded)
        limit = time.time() + float(self.limit_seconds)
        state.set(key, limit)
        return limit


def _accept(verdict: Completeness) -> str:
    if verdict is Completeness.MISSING:
        raise AirflowSensorTimeout(
            "The export folder was not there at the limit: check 'export', [qure] timezone, and the PACS's export."
        )
    return verdict.value
