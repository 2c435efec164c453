"""What the ``airflow qure`` commands do."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import sys
import time
import uuid
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from qure_provider import settings
from qure_provider.delivery.assemble import ready_result
from qure_provider.delivery.courier import Courier
from qure_provider.delivery.destination import HeldError
from qure_provider.ledger.database import LedgerError
from qure_provider.ledger.deliveries import DeliveryRow
from qure_provider.ledger.ledger import Ledger, ResourceRow, RunRow
from qure_provider.nights import local_time, midnight
from qure_provider.store import Store, ledger_url, open_path
from qure_provider.triggers.alerts import TrialAlert, tell

DELIVER_SECONDS = 300.0
_CONTEXT = "_AIRFLOW_PROCESS_CONTEXT"
"""What Airflow's own commands for connections set."""


def study(args: Namespace) -> None:
    """Print everything that is known of a study, as JSON."""
    with _open(args) as (_, ledger):
        uid = next((uid for uid in ledger.study_uids() if args.study in {uid, settings.short_ref(uid)}), None)
        if uid is None:
            raise SystemExit(
                "The ledger knows no such study: give a StudyInstanceUID, or a study ref as alerts and pages have it, "
                "with the [qure] pseudonym_key that made it."
            )
        rows = ledger.rows_of_study(uid)
        _print(
            {
                "identity": asdict(rows[0].identity),
                "study_ref": settings.short_ref(uid),
                "resources": [asdict(row) for row in rows],
                "deliveries": [asdict(row) for row in ledger.deliveries.of_study(uid)],
                "events": ledger.deliveries.events_of_study(uid),
            }
        )


def night(args: Namespace) -> None:
    """Print what became of a night, as JSON, without names."""
    with _open(args) as (store, ledger):
        runs = ledger.runs_of_night(args.night)
        if not runs:
            newest = ", ".join(sorted({run.night for run in ledger.all_runs()}, reverse=True)[:5])
            raise SystemExit(f"The ledger knows no such night. The newest that it knows: {newest or 'none yet'}.")
        _print(
            [
                {
                    **asdict(run),
                    "outcomes": Counter(row.outcome.value if row.outcome else "none" for row in rows),
                    "deliveries": ledger.deliveries.counts(run.id),
                    "problems": _problems(store, run),
                    "needs_somebody": [
                        _shown(row) for row in ledger.deliveries.of_run(run.id) if row.state.value in {"held", "dead"}
                    ],
                }
                for run in runs
                for rows in [ledger.rows_of_run(run.id)]
            ]
        )


def export(args: Namespace) -> None:
    """Print every resource of every night, as JSON or CSV, without names."""
    with _open(args) as (_, ledger):
        rows = [_flat(run.night, row) for run in ledger.all_runs() for row in ledger.rows_of_run(run.id)]
    if args.format == "json":
        _print(rows)
        return
    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]) if rows else ["night"])
    writer.writeheader()
    writer.writerows(rows)


def prune(args: Namespace) -> None:
    """Forget finished nights."""
    if args.older_than_days < 1:
        raise SystemExit("--older-than-days must be 1 or more")
    with _open(args) as (_, ledger):
        counted = ledger.prune(time.time() - args.older_than_days * 86_400, only_count=not args.yes)
    _print({"forgotten": counted} if args.yes else {"would_forget": counted, "note": "nothing was done: add --yes"})


def withdraw(args: Namespace) -> None:
    """Take delivered results back, and record who did and why."""
    if not (args.study or args.product or args.model or args.since):
        raise SystemExit("Say what to withdraw: --study, --product, --model or --since.")
    try:
        since = midnight(args.since, settings.timezone()) if args.since else 0.0
    except ValueError as error:
        raise SystemExit(f"--since: {error}") from None
    with _open(args) as (store, ledger):
        found = [
            row
            for row in ledger.deliveries.not_withdrawn(since=since, study_instance_uid=args.study)
            if args.product.casefold() in {"", row.product.casefold()}
        ]
        unreadable: list[DeliveryRow] = []
        if args.model:
            models = [(row, _models(store, ledger, row)) for row in found]
            found = [row for row, of_row in models if of_row and args.model in of_row]
            unreadable = [row for row, of_row in models if of_row is None]
        shown = [_shown(row) for row in found]
        left_out = {"model_not_known": [_shown(row) for row in unreadable]} if unreadable else {}
        if not args.yes:
            _print({"would_withdraw": shown, **left_out, "note": "nothing was done: add --yes"})
            return
        ledger.deliveries.withdraw(found, by=args.by, why=args.why)
        destinations = sorted({row.destination for row in found})
        courier = Courier(store, ledger, f"withdraw-{uuid.uuid4()}")
        troubles = courier.deliver(destinations, seconds=DELIVER_SECONDS, even_if_not_due=True)
        _print(
            {
                "withdrawn": shown,
                **left_out,
                "troubles": [
                    {**_shown(item.delivery), "state": item.state, "reason": item.reason} for item in troubles
                ],
                "still_owed_to": ledger.deliveries.destinations_owed(),
            }
        )


def alert(args: Namespace) -> None:
    """Send a test through every notifier of ``[qure] notifiers``; a person at a shell is told what went wrong."""
    del args
    try:
        notifiers = [notifier.serialize() for notifier in settings.notifiers()]
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if not notifiers:
        raise SystemExit("[qure] notifiers names nobody, so nobody is told of urgent results: see docs/delivery.md.")
    with _connections_of_the_database():
        errors = [asyncio.run(_error_of(notifier)) for notifier in notifiers]
    _print(
        [
            {"notifier": each["path"], "sent": not error, "error": error}
            for each, error in zip(notifiers, errors, strict=True)
        ]
    )
    if any(errors):
        raise SystemExit(1)


async def _error_of(notifier: Mapping[str, Any]) -> str:
    try:
        await tell(notifier, TrialAlert())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@contextmanager
def _open(args: Namespace) -> Iterator[tuple[Store, Ledger]]:
    root = args.store_root or settings.store_root()
    path = open_path(root)
    if isinstance(path, Path) and not path.is_dir():
        raise SystemExit(f"There is no store at {root}: name its folder with --store-root, or by [qure] store_root.")
    try:
        with _connections_of_the_database(), Ledger.open(ledger_url(root)) as ledger:
            yield Store(root), ledger
    except LedgerError as error:
        raise SystemExit(str(error)) from None
    except SQLAlchemyError as error:
        raise SystemExit(
            f"The ledger's database cannot be used ({type(error).__name__}): check that it runs, and [qure] "
            "ledger_conn_id or the store's ledger.sqlite3."
        ) from None


@contextmanager
def _connections_of_the_database() -> Iterator[None]:
    """Have connections looked up in Airflow's database, too: outside of tasks only what is called a server does."""
    before = os.environ.get(_CONTEXT)
    os.environ[_CONTEXT] = "server"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CONTEXT]
        else:
            os.environ[_CONTEXT] = before


def _models(store: Store, ledger: Ledger, delivery: DeliveryRow) -> set[str] | None:
    """Return which models made a delivery's results; None where the stored results cannot be read."""
    rows = ledger.rows_by_id(delivery.resource_ids)
    try:
        results = [ready_result(store, row) for row in rows]
    except (HeldError, OSError, ValueError):
        return None
    if not rows:
        return None
    return {result.model_version for result in results if result.model_version}


def _problems(store: Store, run: RunRow) -> list[str]:
    """Return why a run is red, as its summary says; there is none before the run has ended."""
    try:
        return [*store.read_json(f"{run.folder}/summary.json")["problems"]]
    except (OSError, ValueError, KeyError):
        return ["The store has no summary of this run that can be read: its summarize task writes one."]


def _shown(row: DeliveryRow) -> dict[str, Any]:
    return {
        "study": settings.short_ref(row.study_instance_uid),
        "kind": row.kind.value,
        "product": row.product,
        "revision": row.revision,
        "destination": row.destination,
        "state": row.state.value,
        "reason": row.reason,
    }


def _flat(night_name: str, row: ResourceRow) -> dict[str, Any]:
    return {
        "night": night_name,
        "study": settings.short_ref(row.identity.study_instance_uid),
        "resource": settings.short_ref(row.uid),
        "route": row.route.value,
        "revision": row.revision,
        "modality": row.modality,
        "product": row.usecase or "",
        "outcome": row.outcome.value if row.outcome else "",
        "triage": row.triage or "",
        "meaning": row.meaning.value,
        **{name: _readable(name, getattr(row, name)) for name in ("uploaded_at", "computed_at", "ready_at")},
    }


def _print(value: Any) -> None:
    json.dump(_readable("", value), sys.stdout, indent=1, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


def _readable(name: str, value: Any) -> Any:
    """Return the same with its times, which the ledger keeps in seconds since the epoch, by the hospital's clock."""
    if isinstance(value, dict):
        return {key: _readable(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(name, item) for item in value]
    is_time = isinstance(value, float) and (name in {"at", "deadline"} or name.endswith("_at"))
    return local_time(value, settings.timezone()) if is_time else value
