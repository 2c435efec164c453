"""What a night is called: by the hospital's clock, never by UTC."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pendulum

MAX_NAME = 120
"""How many characters of a name become part of a path."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def night_of(context: Mapping[str, Any], timezone: str) -> str:
    """Return the name of the night that a run is for.

    It is the run's partition key, else its logical date, else the time it was due, in the hospital's zone. ``{{ ds }}``
    would be wrong: 02:00 in Kolkata is still yesterday in UTC.

    Args:
        context: The task's context.
        timezone: An IANA zone name.

    Returns:
        ``YYYY-MM-DD``, or the partition key.
    """
    dag_run = context["dag_run"]
    if dag_run.partition_key:
        return safe_name(dag_run.partition_key)
    moment = dag_run.logical_date or dag_run.run_after
    return str(pendulum.instance(moment).in_timezone(timezone).to_date_string())


def safe_name(text: str) -> str:
    """Return the text as one harmless path component: letters, digits, dot, dash and underscore."""
    name = _UNSAFE.sub("_", text).strip(".")
    return name[:MAX_NAME] or "_"


def in_night(template: str, night: str) -> str:
    """Put the night's name in the place of ``{night}``."""
    return template.replace("{night}", night)
