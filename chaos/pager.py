"""Tells people by writing into a file: a line for each time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from airflow.sdk import BaseNotifier
from airflow.sdk.definitions.context import Context

PAGER_FILE = "CHAOS_PAGER"
"""The environment variable that names the file."""


class FilePager(BaseNotifier):
    """Writes a study's pseudonym.

    Args:
        message: What is written; a template.
        kwargs: Of the base class.
    """

    template_fields: Sequence[str] = ("message",)

    def __init__(self, message: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.message = message

    async def async_notify(self, context: Context) -> None:
        """Tell people."""
        line = os.open(os.environ[PAGER_FILE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(line, f"{self.message}\n".encode())
        finally:
            os.close(line)
