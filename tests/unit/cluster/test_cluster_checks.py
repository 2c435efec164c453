"""How a night's ledger is judged."""

from pathlib import Path

import pytest
from sqlalchemy import create_engine, delete, insert, update

from cluster.night import check_ledger
from demo.export import ExpectedResource, ExportedFile, ExportFacts
from qure_provider.api.model import Route
from qure_provider.dicom.model import Fate
from qure_provider.ledger.schema import acknowledged, metadata, resources, studies

SERIES = {"1.1": 2, "1.2": 3}
FACTS = ExportFacts(
    night="2026-01-15",
    folder=Path("/nowhere"),
    files=tuple(ExportedFile(str(number), Fate.SELECTED, "slice") for number in range(5)),
    resources=tuple(ExpectedResource(uid, Route.CT, "qct", "1", uid, files, (), "CT") for uid, files in SERIES.items()),
)
STUDY = {column.name: "" for column in studies.columns if column.name not in {"id", "first_seen_at"}}
RESOURCE = {
    **dict.fromkeys(
        ("conn_id", "fingerprint", "modality", "body_part", "station_name", "acquired", "reason", "doubt"), ""
    ),
    "revision": 1,
    "route": "ct",
    "study_id": 1,
    "instances": 1,
    "facts": {},
    "outcome": "ready",
    "planned_at": 1.0,
    "settled_at": 2.0,
    "updated_at": 2.0,
}


@pytest.fixture
def ledger(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path / 'ledger'}")
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(studies).values(id=1, first_seen_at=1.0, **STUDY))
        for key, (uid, files) in enumerate(SERIES.items(), start=1):
            connection.execute(insert(resources).values(id=key, uid=uid, series_instance_uid=uid, **RESOURCE))
            held = [{"resource_id": key, "sop_instance_uid": f"{uid}.{number}"} for number in range(files)]
            connection.execute(insert(acknowledged), held)
    yield engine
    engine.dispose()


def found_after(ledger, *statements):
    with ledger.begin() as connection:
        for statement in statements:
            connection.execute(statement)
    return list(check_ledger(ledger, FACTS))


def test_a_whole_night_is_found_right(ledger):
    assert found_after(ledger) == []


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (update(resources).where(resources.c.id == 1).values(outcome="timed_out"), "1 resources that are not ready"),
        (update(resources).where(resources.c.id == 2).values(settled_at=None), "1 resources that are not ready"),
        (delete(acknowledged).where(acknowledged.c.sop_instance_uid == "1.2.0"), "4 acknowledged files"),
        (insert(acknowledged).values(resource_id=1, sop_instance_uid="9"), "6 acknowledged files"),
        (update(resources).where(resources.c.id == 1).values(uid="1.9"), "1 rows for 2 resources"),
    ],
)
def test_what_is_lost_doubled_or_unfinished_is_named(ledger, harm, words):
    assert any(words in problem for problem in found_after(ledger, harm))
