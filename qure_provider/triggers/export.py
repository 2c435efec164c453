"""Watching an export folder in the triggerer until it is complete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from qure_provider.exports import Completeness, judge


class QureExportTrigger(BaseTrigger):
    """Look at an export folder again and again until it is judged complete, or the limit has passed.

    Args:
        export: The folder.
        quiet_seconds: Complete when nothing was added or changed for so long.
        marker: Complete when a file of this name lies in the folder; empty for none.
        expected_files: Complete when so many files are there; 0 for no expectation.
        limit: When it is taken as it is, seconds since the epoch.
        poll_seconds: Between two looks.
    """

    def __init__(
        self, *, export: str, quiet_seconds: float, marker: str, expected_files: int, limit: float, poll_seconds: float
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.export = export
        self.quiet_seconds = quiet_seconds
        self.marker = marker
        self.expected_files = expected_files
        self.limit = limit
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, for the trigger's row."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "export": self.export,
                "quiet_seconds": self.quiet_seconds,
                "marker": self.marker,
                "expected_files": self.expected_files,
                "limit": self.limit,
                "poll_seconds": self.poll_seconds,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until it is decided."""
        while True:
            verdict = await asyncio.to_thread(
                judge,
                self.export,
                quiet_seconds=self.quiet_seconds,
                marker=self.marker,
                expected_files=self.expected_files,
                limit=self.limit,
            )
            if verdict is not Completeness.NOT_YET:
                break
            await asyncio.sleep(min(self.poll_seconds, max(self.limit - time.time(), 0.1)))
        yield TriggerEvent({"completeness": verdict.value})  # type: ignore[no-untyped-call]
