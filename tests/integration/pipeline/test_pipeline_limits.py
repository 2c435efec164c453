"""How much an export may make a plan read, each limit a setting."""

import json

import pytest
from pipeline_kit import image

from qure_provider.dicom.export import TooManyFilesError
from qure_provider.dicom.reasons import Quarantine
from qure_provider.emulator.model import Kind


def test_R8_an_export_of_too_many_files_is_refused_whole(hospital, monkeypatch):
    monkeypatch.setenv("AIRFLOW__QURE__MAX_FILES", "3")
    for number in range(4):
        hospital.xray(f"film-{number}")

    with pytest.raises(TooManyFilesError, match=r"more than 3 files.*\[qure\] max_files"):
        hospital.plan()
    assert hospital.control.count(Kind.UPLOAD) == 0


def test_R8_a_header_that_is_too_large_costs_its_file_alone(hospital, monkeypatch):
    monkeypatch.setenv("AIRFLOW__QURE__MAX_HEADER_BYTES", "20000")
    (film,) = hospital.xray("film")
    bloated = image("DX")
    block = bloated.private_block(0x0009, "SIMULATED", create=True)
    for number in range(0xFF):
        block.add_new(number, "LT", "SIMULATED" * 100)
    hospital.put("bloated.dcm", bloated)

    hospital.plan()

    assert set(hospital.rows()) == {film.SOPInstanceUID}
    (listing,) = hospital.root.glob("runs/*/*/passed_over.jsonl")
    (row,) = map(json.loads, listing.read_text().splitlines())
    assert (row["path"], row["fate"], row["reason"]) == ("bloated.dcm", "quarantined", Quarantine.HEADER_TOO_LARGE)
