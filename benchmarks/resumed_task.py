"""The tasks that the provider's triggers resume: they take what is ready, and record it, in a process of their own.

``python -m benchmarks.resumed_task JOB``; JOB is JSON: the ``plan`` of the server of results, the ``store`` of the
ledger, and ``settle``, seconds. The plan is read instead of asking that server, whose requests are counted as the
triggerer's. Told ``[batch, keys of what the trigger looked at twice, seconds since the beginning]``, it says what is
settled now and what is urgent.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.children import keep_quiet, orders, say
from benchmarks.results_server import ready_body
from qure_provider.api.answers import RawAnswer, parse_result
from qure_provider.api.model import Outcome, ResultsVersion, Route
from qure_provider.ledger.ledger import Ledger
from qure_provider.store import ledger_url


def take(
    ledger: Ledger,
    plan: Mapping[str, tuple[float, str] | None],
    batch: int,
    seen: Iterable[int],
    elapsed: float,
    settle: float,
) -> dict[str, list[int]]:
    """Take what is ready of a batch, as the task does: what is there for the first time is looked at once more.

    Args:
        ledger: Where it is recorded.
        plan: See ``results_server``.
        batch: The batch's key.
        seen: Keys of the resources that the trigger has looked at twice.
        elapsed: Seconds since the plan began.
        settle: Seconds between two looks at the same result.

    Returns:
        The keys of what is ``done``, and of what is ``urgent``.
    """
    twice = set(seen)
    done: list[int] = []
    urgent: list[int] = []
    for row in ledger.rows_of_batch(batch):
        planned = plan[row.uid]
        if row.is_over or planned is None or elapsed < planned[0]:
            continue
        usecase = "qer" if row.route is Route.CT else "qxr"
        raw = RawAnswer(200, "application/json", ready_body(planned[1], usecase))
        is_second_look = row.outcome is Outcome.READY and time.time() - row.updated_at >= settle
        is_settled = row.id in twice or is_second_look
        if is_settled or row.outcome is not Outcome.READY:
            ledger.record_answer(row.id, parse_result(raw, row.route, ResultsVersion.V2), settled=is_settled)
        done += [row.id] if is_settled else []
        urgent += [row.id] if planned[1] == "Critical" else []
    return {"done": done, "urgent": urgent}


def main() -> None:
    """Take whenever told."""
    job: dict[str, Any] = json.loads(sys.argv[1])
    keep_quiet()
    plan = json.loads(Path(job["plan"]).read_text(encoding="utf-8"))
    with Ledger.open(ledger_url(job["store"])) as ledger:
        for order in orders():
            batch, seen, elapsed = json.loads(order)
            say(take(ledger, plan, batch, seen, elapsed, job["settle"]))


if __name__ == "__main__":
    main()
