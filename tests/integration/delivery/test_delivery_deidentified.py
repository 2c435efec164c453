"""A de-identified night reaches PACS, RIS and folder as an identified one does: about the patient."""

import base64
import json
from io import BytesIO

import pydicom
import pytest
from support.dicom_archive import DicomArchive

from qure_provider.dicom.traces import Tracker

KEY = base64.b64encode(b"a key for tests that nobody uses").decode()
WHO = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyInstanceUID", "StudyDate")


@pytest.fixture
def pacs(monkeypatch):
    with DicomArchive() as archive:
        fields = {"conn_type": "dicom", "host": "127.0.0.1", "port": archive.port}
        monkeypatch.setenv("AIRFLOW_CONN_PACS", json.dumps({**fields, "extra": {"called_ae_title": "ARCHIVE"}}))
        yield archive


@pytest.fixture
def night(hospital, monkeypatch, pacs, ris):
    """A chest film pair and a head CT of another patient, collected and delivered."""
    monkeypatch.setenv("AIRFLOW__QURE__IDENTITY_POLICY", "deidentify")
    key = {"conn_type": "qure_deidentify", "password": KEY}
    monkeypatch.setenv("AIRFLOW_CONN_QURE_DEIDENTIFY_DEFAULT", json.dumps(key))
    hospital.sources = [
        *hospital.xray("chest", 2, PatientName="SIMULATED^Quäxlinger"),
        *hospital.ct("head", PatientID="SIM-2", PatientName="SIMULATED^Ünbekannt=仮名", AccessionNumber="SIM-A2"),
    ]
    hospital.process(hospital.plan())
    assert hospital.onward("pacs", "ris", hospital.to_folder) == []
    return hospital


def ways_back(night):
    with night.ledger() as ledger:
        return [ledger.pseudonyms.way_back(row.id) for row in night.rows().values()]


def test_every_object_is_the_patients(night, pacs):
    sources = {source.StudyInstanceUID: source for source in night.sources}
    instances = {source.SOPInstanceUID for source in night.sources}

    assert {each.StudyInstanceUID for each in pacs.received} == set(sources)
    for each in pacs.received:
        source = sources[each.StudyInstanceUID]
        for keyword in WHO:
            assert str(each.get(keyword)) == str(source.get(keyword)), keyword
        assert each.SOPInstanceUID not in instances
        referenced = {str(item.value) for item in each.iterall() if item.keyword == "ReferencedSOPInstanceUID"}
        assert referenced <= instances | set(pacs.uids)


def test_nothing_that_was_sent_is_left_in_what_arrives(night, pacs, ris):
    arrived = [path.read_bytes() for path in night.out.rglob("*") if path.is_file()]
    arrived += [message.raw for message in ris.messages]
    for each in pacs.received:
        stream = BytesIO()
        each.save_as(stream, enforce_file_format=True)
        arrived.append(stream.getvalue())

    trackers = [Tracker(way_back) for way_back in ways_back(night)]
    assert len(arrived) > len(pacs.received) > 0
    for content in arrived:
        for tracker in trackers:
            assert tracker.find_in_bytes(content) == frozenset()


def test_the_report_names_the_patient_and_the_study(night, ris):
    told = b"\n".join(message.raw for message in ris.messages)
    for word in ("SIM-1", "SIM-2", "SIM-A1", "SIM-A2", "Quäxlinger"):
        assert word.encode() in told


def test_the_documents_that_are_held_do_not_arrive(night, pacs):
    stored = [night.result(row) for row in night.rows().values()]
    assert any(result["held"] for result in stored)
    assert not [path for path in night.out.rglob("*") if path.suffix == ".pdf"]
    assert "Encapsulated PDF Storage" not in {pydicom.uid.UID(each.SOPClassUID).name for each in pacs.received}
    assert night.states("pacs") == {"delivered": len(stored)}
