"""What Airflow takes for the name of its machine, where several machines are stood for by one."""

from __future__ import annotations

import os


def hostname() -> str:
    """The name that a container would have."""
    return os.environ["HOSTNAME"]
