"""A night that is de-identified, of a patient whose every word stands out: who learns of it, and who must not."""

import base64
import json
import logging
import re

import pytest
from pipeline_kit import Pager
from support.canary import DIGITS, Mark, in_database, in_folder, search

from qure_provider.emulator.model import Answer, At, Kind, OtherPatient, Truncate
from qure_provider.operators.summarize import NightUnresolvedError
from qure_provider.retries import StepIncompleteError

ALLOWED = {
    "patient": (r"store:", r"ledger:(studies|identity_maps)\.", r"ledger:resources\.facts"),
    "uid": (r"store:", r"ledger:"),
    "secret": (),
}


@pytest.fixture
def marks(monkeypatch, connected):
    marks = {"patient": Mark("patient"), "uid": Mark("uid", alphabet=DIGITS, length=13), "secret": Mark("secret")}
    key = base64.b64encode(" ".join(marks["secret"].new() for _ in range(3)).encode()).decode()
    fields = {"conn_type": "qure_deidentify", "password": key}
    monkeypatch.setenv("AIRFLOW_CONN_QURE_DEIDENTIFY_DEFAULT", json.dumps(fields))
    monkeypatch.setenv("AIRFLOW__QURE__IDENTITY_POLICY", "deidentify")
    marks["secret"].add(connected.token)
    connected.control.clear_faults()
    return marks


def patient(marks):
    new, uid = marks["patient"].new, marks["uid"].new
    return {
        "PatientName": new(after="^GIVEN"),
        "PatientID": new(),
        "AccessionNumber": new(),
        "PatientAddress": new(),
        "InstitutionName": new(),
        "ReferringPhysicianName": new(after="^DOCTOR"),
        "StudyDescription": new("CHEST "),
        "StudyInstanceUID": uid("1.2.3."),
        "SeriesInstanceUID": uid("1.2.3."),
    }


FAULTS = [
    Answer(kind=Kind.UPLOAD, status=500),
    Answer(kind=Kind.UPLOAD, at=At.ANSWER, status=502),
    Answer(kind=Kind.RESULTS, status=400, json_body={"message": "no"}),
    Truncate(kind=Kind.ASSET),
    OtherPatient(kind=Kind.ASSET, times=2),
]


@pytest.mark.parametrize("is_faulty", [False, True], ids=["well", "with faults"])
def test_R4_R6_a_deidentified_night_tells_nobody(hospital, marks, caplog, is_faulty):
    caplog.set_level(logging.DEBUG)
    name = marks["patient"].new
    hospital.xray(name(), images=2, **patient(marks))
    hospital.ct(name(), **patient(marks))
    (hospital.export / name()).write_text(name())
    if is_faulty:
        for fault in FAULTS:
            hospital.control.inject(fault)
    said = []

    batches = hospital.plan()
    for batch in batches:
        for step in (hospital.upload, hospital.compute, hospital.collect):
            if step != hospital.compute or batch["route"] == "ct":
                try:
                    step(batch, **({"notifiers": [Pager.callback()]} if step == hospital.collect else {}))
                except StepIncompleteError as error:
                    said.append(repr(error))
                said.append(json.dumps(hospital.events))
    try:
        hospital.summarize()
    except NightUnresolvedError as error:
        said.append(repr(error))

    places = [
        ("log:", caplog.text.encode()),
        ("xcom:", json.dumps(batches).encode()),
        ("said:", "\n".join([*said, *map(str, Pager.told)]).encode()),
        ("asked:", "\n".join(request.path for request in hospital.control.requests()).encode()),
        *(("sent:", open(file.path, "rb").read()) for file in hospital.control.received()),  # noqa: PTH123, SIM115
        *in_database("ledger", hospital.root / "ledger.sqlite3"),
        *(place for place in in_folder("store", hospital.root) if "ledger.sqlite3" not in place[0]),
    ]
    found = search(places, marks.values())
    assert hospital.control.received()
    assert {"store", "ledger"} <= {place.partition(":")[0] for place in found["patient"]}
    for kind, allowed in ALLOWED.items():
        leaks = {
            place: text for place, text in found[kind].items() if not any(re.match(each, place) for each in allowed)
        }
        assert leaks == {}
