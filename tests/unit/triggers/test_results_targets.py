"""What a trigger keeps of each resource that it waits for."""

import time
import tracemalloc

import pytest

from qure_provider.api.model import Route
from qure_provider.dicom.model import Identity, Instance, SelectedSeries, Series
from qure_provider.ledger.ledger import Ledger
from qure_provider.store import ledger_url
from qure_provider.triggers.results import QureResultsTrigger

COUNT = 2000


def film(number):
    uid = f"1.2.826.0.1.3680043.8.498.{10**30 + number}"
    instance = Instance(f"{number}.dcm", 10_000, 0.0, f"{uid}.1", "", "")
    series = Series(Identity(uid, f"SIM-{number}"), f"{uid}.2", "DX", (instance,), study_date="20261120")
    return SelectedSeries(series, Route.XRAY)


@pytest.fixture
def batch(tmp_path):
    """A batch of many X-rays that all were uploaded; the first was alerted to already."""
    with Ledger.open(ledger_url(str(tmp_path)), create=True) as ledger:
        run = ledger.begin_run(
            dag_id="night",
            run_id="r1",
            group_id="g",
            clear_number=0,
            night="2026-11-20",
            conn_id="qure_default",
            folder="runs/r1",
            deadline=0.0,
            completeness="quiet",
        )
        rows = [row for entry in ledger.assess([film(number) for number in range(COUNT)]) for row in entry.rows]
        (batch_id,) = ledger.replace_plan(
            run, batches_of_rows=[(Route.XRAY, "runs/r1/batch-000.json", rows)], done=(), counts={}
        )
        ledger.mark_uploaded(row.id for row in rows)
        ledger.record_alert(rows[0].id, "mail", error="")
        ledger.record_alert(rows[1].id, "mail", error="refused")
    return batch_id


def test_each_knows_which_channels_were_told_of_it(batch, tmp_path):
    trigger = QureResultsTrigger(qure_conn_id="q", deadline=time.time(), batch_id=batch, store_root=str(tmp_path))
    told, refused, *others = trigger._targets()

    assert told.alerted == {"mail"}
    assert not refused.alerted
    assert not any(other.alerted for other in others)


def test_ten_thousand_fit_in_ten_megabytes(batch, tmp_path):
    trigger = QureResultsTrigger(qure_conn_id="q", deadline=time.time(), batch_id=batch, store_root=str(tmp_path))
    trigger._targets()
    tracemalloc.start()
    try:
        targets = trigger._targets()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(targets) == COUNT
    assert kept / COUNT < 1024
