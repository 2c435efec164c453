"""The ``[qure]`` section of Airflow's configuration, read where it is used."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow.sdk.configuration import conf
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.module_loading import import_string  # type: ignore[attr-defined]

SECTION = "qure"


class IdentityPolicy(StrEnum):
    """Whether data is de-identified before it leaves. There is no default: it is the hospital's decision."""

    IDENTIFIED = "identified"
    """Studies are sent exactly as exported, names included."""
    DEIDENTIFY = "deidentify"
    """What identifies is removed or replaced by pseudonyms before a study leaves, and put back into its results."""


class IdentityPolicyError(ValueError):
    """Nobody has decided yet whether patients' data may leave as it is; nothing is sent until somebody does."""


def identity_policy(value: str | None = None) -> IdentityPolicy:
    """Return the policy to follow.

    Args:
        value: The caller's own choice; None or empty for ``[qure] identity_policy``.

    Raises:
        IdentityPolicyError: If neither says one, or says one that does not exist.
    """
    chosen = (value or _text("identity_policy")).strip()
    try:
        return IdentityPolicy(chosen)
    except ValueError:
        problem = f"{chosen!r} is no identity policy." if chosen else "No identity policy is set, so nothing was sent."
        raise IdentityPolicyError(
            f"{problem} Whether patient data may leave the hospital is a decision that the software does not take: set "
            "identity_policy on the task, or [qure] identity_policy in Airflow's configuration, to 'deidentify' (what "
            "identifies is removed or replaced before upload and put back into the results; it needs a connection of "
            "type qure_deidentify with a secret key) or to 'identified' (studies are sent exactly as exported, names "
            "included)."
        ) from None


def check_options() -> None:
    """Refuse options of ``[qure]`` that do not exist: one that is misspelt would be left out in silence.

    Raises:
        ValueError: If there is one; it names those that there are.
    """
    from qure_provider.get_provider_info import get_provider_info

    known = set(get_provider_info()["config"][SECTION]["options"])
    prefix = f"AIRFLOW__{SECTION.upper()}__"
    named = [name.removeprefix(prefix).lower() for name in os.environ if name.startswith(prefix)]
    if conf.has_section(SECTION):
        named += conf.options(SECTION)
    given = {name.removesuffix("_cmd").removesuffix("_secret") for name in named}
    if unknown := sorted(given - known):
        raise ValueError(
            f"[{SECTION}] has no option {', '.join(map(repr, unknown))}. Its options are {', '.join(sorted(known))}."
        )


def _text(option: str) -> str:
    return str(conf.get(SECTION, option, fallback="")).strip()


def store_root() -> str:
    """Return where results are kept: ``[qure] store_root``, a path or a URL that ``ObjectStoragePath`` understands."""
    configured = _text("store_root")
    return configured or str(Path(conf.get("core", "dags_folder")).parent / "qure")


def export_root() -> str:
    """Return ``[qure] export_root``, the folder that holds one export folder a night; empty where not set."""
    return _text("export_root")


def night_export() -> str:
    """Return where a night's export lies: ``export_root``, and ``{night}`` below it if it is not in it."""
    root = export_root()
    return root if "{night" in root else f"{root}/{{night}}"


def timezone() -> str:
    """Return the hospital's time zone: ``[qure] timezone``, else Airflow's own default."""
    configured = _text("timezone")
    if configured:
        return configured
    airflow_default = str(conf.get("core", "default_timezone", fallback="utc")).strip()
    return "UTC" if airflow_default.lower() in {"", "utc"} else airflow_default


def deliver_to() -> list[str]:
    """Return ``[qure] deliver_to``: where the DAGs that come with the provider deliver everything."""
    return _text("deliver_to").replace(",", " ").split()


def selection() -> dict[str, Any]:
    """Return ``[qure] selection``: what the DAGs that come with the provider send, in place of the safe defaults.

    Raises:
        ValueError: If it is no JSON object.
    """
    value = conf.getjson(SECTION, "selection", fallback={})
    if not isinstance(value, dict):
        raise ValueError("[qure] selection must be a JSON object.")
    return value


def rules() -> list[dict[str, Any]]:
    """Return ``[qure] rules``: what the DAGs that come with the provider deliver where, before ``deliver_to``."""
    return _list_of_objects("rules", conf.getjson(SECTION, "rules", fallback=[]))


def notifiers() -> list[AsyncCallback]:
    """Return ``[qure] notifiers``: whom the DAGs that come with the provider tell of urgent results.

    Raises:
        ValueError: If it is no list of notifiers that can be imported here.
    """
    found = []
    for entry in _list_of_objects("notifiers", conf.getjson(SECTION, "notifiers", fallback=[])):
        path, kwargs = entry.get("path"), entry.get("kwargs", {})
        if set(entry) - {"path", "kwargs"} or not isinstance(path, str) or not isinstance(kwargs, dict):
            raise ValueError(f"{_NOTIFIERS} must hold objects with a class's 'path' and its arguments, 'kwargs'.")
        try:
            found.append(AsyncCallback(import_string(path), kwargs=kwargs))
        except (ImportError, AttributeError, ValueError):
            raise ValueError(
                f"{_NOTIFIERS} names {path!r}, which is no notifier that can be imported here. Install its Airflow "
                "provider wherever DAGs are parsed, tasks run and triggers wait."
            ) from None
    return found


def page_on() -> list[str]:
    """Return ``[qure] page_on``: the triage meanings that people are told of; ``urgent`` where not set."""
    return _commas(_text("page_on")) or ["urgent"]


def page_findings() -> list[str]:
    """Return ``[qure] page_findings``: the finding or decision keys that people are told of."""
    return _commas(_text("page_findings"))


_NOTIFIERS = "[qure] notifiers"


def _commas(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _list_of_objects(option: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(f"[qure] {option} must be a JSON list of objects.")
    return value


def allow_quarantined() -> bool:
    """Return ``[qure] allow_quarantined``: whether a night with quarantined files can be in order."""
    return bool(conf.getboolean(SECTION, "allow_quarantined", fallback=False))


def ledger_conn_id() -> str:
    """Return ``[qure] ledger_conn_id``; empty means SQLite beside a local store."""
    return _text("ledger_conn_id")


def deidentify_conn_id() -> str:
    """Return ``[qure] deidentify_conn_id``: the connection that holds the key for pseudonyms."""
    return _text("deidentify_conn_id") or "qure_deidentify_default"


def max_batches() -> int:
    """Return into how many mapped tasks a night is divided at most."""
    return int(conf.getint(SECTION, "max_batches", fallback=16))


def max_files() -> int:
    """Return how many files an export may hold; one of more is refused whole."""
    return int(conf.getint(SECTION, "max_files", fallback=2_000_000))


def max_header_bytes() -> int:
    """Return how many bytes of one file's header are read; a file of more is quarantined."""
    return int(conf.getint(SECTION, "max_header_bytes", fallback=16 * 1024 * 1024))


STEPS = ("plan", "upload", "compute", "collect", "deliver", "summarize", "redeliver")
"""What can have a pool and a queue of its own."""


def placement(
    step: str, pools: Mapping[str, str] | None = None, queues: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return where a step's tasks run, as arguments of its operator: ``pool``, ``queue``, both or neither.

    Args:
        step: One of ``STEPS``.
        pools: Step to pool; None for ``[qure] pools``.
        queues: Step to queue; None for ``[qure] queues``.

    Raises:
        ValueError: If a pool or queue is named for something that is no step.
    """
    chosen = {
        "pool": conf.getjson(SECTION, "pools", fallback={}) if pools is None else pools,
        "queue": conf.getjson(SECTION, "queues", fallback={}) if queues is None else queues,
    }
    for kind, places in chosen.items():
        if not isinstance(places, Mapping) or set(places) - set(STEPS):
            raise ValueError(f"{kind}s must be a mapping of steps ({', '.join(STEPS)}) to names of {kind}s")
    return {kind: str(places[step]) for kind, places in chosen.items() if step in places}


def first_poll_seconds() -> float:
    """Return how long after deferring a result is first asked for, in seconds."""
    return float(conf.getfloat(SECTION, "first_poll_seconds", fallback=15.0))


def max_poll_seconds() -> float:
    """Return the longest time between two questions for the same result, in seconds."""
    return float(conf.getfloat(SECTION, "max_poll_seconds", fallback=60.0))


def settle_seconds() -> float:
    """Return after how many seconds a ready result is asked for again, to see whether files were added to it."""
    return float(conf.getfloat(SECTION, "settle_seconds", fallback=15.0))


@cache
def _pseudonym_key() -> bytes:
    configured = _text("pseudonym_key") or str(conf.get("core", "fernet_key", fallback=""))
    return configured.encode() or secrets.token_bytes(32)


def short_ref(uid: str) -> str:
    """Return a short keyed pseudonym for a UID, the same in logs, tables and pages of one installation.

    The key is ``[qure] pseudonym_key``, else Airflow's Fernet key, else one made for this process alone.

    Args:
        uid: Any DICOM UID.

    Returns:
        Ten hexadecimal digits.
    """
    return hmac.new(_pseudonym_key(), uid.encode(), hashlib.sha256).hexdigest()[:10]


def run_link(dag_id: str, run_id: str) -> str:
    """Return the address of a run in the Airflow UI; empty where ``[api] base_url`` is not set."""
    base = str(conf.get("api", "base_url", fallback="")).strip().rstrip("/")
    return f"{base}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}" if base else ""
