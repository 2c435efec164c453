"""A night without Airflow: a script with the provider's own scan, hook and store, four threads, and nothing kept.

``python -m benchmarks.bare_night JOB``; JOB is JSON. It is the limit of what the pipeline could take: no ledger, no
batches, no retries by Airflow, no second look at whether a result's files are complete.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.children import keep_quiet, orders, say, timed
from benchmarks.pollers import CONN_ID
from qure_provider.api.model import Outcome, ResourceRef, ResultAnswer, Route
from qure_provider.dicom.model import SelectedSeries
from qure_provider.dicom.scan import scan
from qure_provider.dicom.select import SelectionRules, select
from qure_provider.hooks.outgoing import OutgoingFile
from qure_provider.hooks.qure import QureHook
from qure_provider.operators.fetching import fetch_result
from qure_provider.store import Store, result_folder

PARALLEL = 4
POLL_SECONDS = 1.0


def run(export: Path, store: Store) -> dict[str, float]:
    """Do all of it; returns how many results there are, and the seconds of CPU that they took."""
    begun = time.process_time()
    selected = select(scan(export), SelectionRules()).selected
    series_of = {ref.uid: each for each in selected for ref in each.resources}
    with QureHook(CONN_ID) as hook, ThreadPoolExecutor(PARALLEL) as pool:
        report = hook.upload([file for each in selected for file in _files(export, each)])
        if report.failed or report.not_sent:
            raise RuntimeError(f"{len(report.failed) + len(report.not_sent)} files were not acknowledged")
        computed = [each.series.series_instance_uid for each in selected if each.route is Route.CT]
        list(pool.map(hook.compute, computed))
        waiting = [ref for each in selected for ref in each.resources]

        def take(ref: ResourceRef) -> ResourceRef | None:
            answer = hook.result(ref)
            if answer.outcome is not Outcome.READY:
                return ref
            _fetch(hook, store, ref, answer, series_of[ref.uid])
            return None

        while waiting:
            asked = time.monotonic()
            waiting = [ref for ref in pool.map(take, waiting) if ref]
            if waiting:
                time.sleep(max(0.0, asked + POLL_SECONDS - time.monotonic()))
    return {"results": len(series_of), "cpu": time.process_time() - begun}


def _files(export: Path, selected: SelectedSeries) -> list[OutgoingFile]:
    uid = selected.series.series_instance_uid
    return [
        OutgoingFile(instance.sop_instance_uid, uid, str(export / instance.path), instance.size)
        for instance in selected.series.instances
    ]


def _fetch(hook: QureHook, store: Store, ref: ResourceRef, answer: ResultAnswer, selected: SelectedSeries) -> None:
    study, series = selected.series.identity.study_instance_uid, selected.series.series_instance_uid
    fetch_result(
        hook,
        store,
        ref,
        answer,
        result_folder(study, series, ref.uid, ref.route, 1),
        study_instance_uid=study,
        series_instance_uid=series,
    )


def main() -> None:
    """Run when told."""
    job = json.loads(sys.argv[1])
    os.environ[f"AIRFLOW_CONN_{CONN_ID.upper()}"] = json.dumps(job["connection"])
    keep_quiet()
    say({"ready": "bare"})
    for _ in orders():
        say(timed(lambda: run(Path(job["export"]), Store(job["store"]))))


if __name__ == "__main__":
    main()
