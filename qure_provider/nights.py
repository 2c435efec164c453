"""The hospital's clock: what a night is called, when a day begins, and how a time is shown; never by UTC."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pendulum

MAX_NAME = 120
"""How many characters of a name become part of a path."""

_NIGHT = re.compile(r"\{night(?::(?P<form>[^{}]+))?\}")
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


def midnight(day: str, timezone: str) -> float:
    """Return when a day begins, in seconds since the epoch.

    Args:
        day: ``YYYY-MM-DD``.
        timezone: An IANA zone name.

    Raises:
        ValueError: If it is no such date.
    """
    try:
        return float(pendulum.from_format(day, "YYYY-MM-DD", tz=timezone).timestamp())
    except ValueError:
        raise ValueError(f"{day!r} is no date: write it as YYYY-MM-DD, such as 2026-11-20.") from None


def local_time(seconds: float, timezone: str) -> str:
    """Return a time as a reader wants it: ``YYYY-MM-DD HH:MM:SS+ZZ:ZZ``.

    Args:
        seconds: Since the epoch.
        timezone: An IANA zone name.
    """
    return str(pendulum.from_timestamp(int(seconds), tz=timezone).isoformat(" "))


def safe_name(text: str) -> str:
    """Return the text as one harmless path component: letters, digits, dot, dash and underscore."""
    name = _UNSAFE.sub("_", text).strip(".")
    return name[:MAX_NAME] or "_"


def in_night(template: str, night: str) -> str:
    """Put the night's name in the place of ``{night}``, and its date, written so, in that of ``{night:YYYYMMDD}``.

    Args:
        template: The text; what follows the colon is made of pendulum's words, such as YYYY, MM and DD.
        night: As ``night_of`` names it.

    Raises:
        ValueError: If the date is to be written otherwise and the night is named by none.
    """

    def written(found: re.Match[str]) -> str:
        return str(_date(night).format(found["form"])) if found["form"] else night

    return _NIGHT.sub(written, template)


def _date(night: str) -> pendulum.Date:
    try:
        return pendulum.Date.fromisoformat(night)
    except ValueError:
        raise ValueError(
            f"Night {night!r} is not named by a date, so it cannot be written by a form: say {{night}} alone."
        ) from None
