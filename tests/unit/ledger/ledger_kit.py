"""Series as a scan would give them, SIMULATED."""

from dataclasses import replace

from qure_provider.api.model import Outcome, ResultAnswer, Route
from qure_provider.dicom.model import Identity, Instance, SelectedSeries, Series
from qure_provider.ledger.ledger import RunRow


def identity(number=1, **values):
    return replace(
        Identity(f"1.2.{number}", f"SIM-{number}", "SIM", f"A{number}", "19700101", "F", f"SIMULATED^{number}"),
        **values,
    )


def instance(uid, size=100):
    return Instance(f"folder/{uid}.dcm", size, 1.0, uid, "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1")


def series(number=1, *, route=Route.CT, images=3, size=100, of=None):
    """One selected series, of a study of its own unless ``of`` says whose it is."""
    uid = f"1.2.{number}.1"
    instances = tuple(instance(f"{uid}.{each}", size) for each in range(images))
    modality = "CT" if route is Route.CT else "CR"
    return SelectedSeries(Series(of or identity(number), uid, modality, instances, study_date="20261120"), route)


def begin(ledger, run_id="r1", **values) -> RunRow:
    arguments = {
        "dag_id": "night",
        "run_id": run_id,
        "group_id": "g",
        "clear_number": 0,
        "night": "2026-11-20",
        "conn_id": "qure_default",
        "folder": f"runs/{run_id}",
        "deadline": 1000.0,
        "completeness": "quiet",
    }
    return ledger.begin_run(**{**arguments, **values})


def plan(ledger, run, *selected, recompute=False):
    """Assess and record a plan of one batch a series; return the batches' ids."""
    entries = ledger.assess(list(selected), recompute=recompute)
    return ledger.replace_plan(
        run,
        batches_of_rows=[
            (entry.selected.route, f"{run.folder}/{number}.json", [row for row in entry.rows if row.why != "done"])
            for number, entry in enumerate(entries)
            if any(row.why != "done" for row in entry.rows)
        ],
        done=[row for entry in entries for row in entry.rows if row.why == "done"],
        counts={"series": len(selected)},
    )


def finish(ledger, resource_id, outcome=Outcome.READY):
    """Record that a resource was sent and answered."""
    ledger.mark_uploaded([resource_id])
    ledger.record_answer(resource_id, ResultAnswer(outcome), settled=outcome is Outcome.READY)
