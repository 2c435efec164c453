"""SIMULATED reports for the tests of FHIR."""

from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

from qure_provider.api.model import Meaning, Outcome, Report, Route
from qure_provider.dicom.model import Identity, StudyFacts
from qure_provider.reports.result import Result
from qure_provider.reports.study_report import StudyReport

SYSTEM = "urn:oid:1.2.3.4"
STUDY = "2.25.1001"
IDENTITY = Identity(
    study_instance_uid=STUDY,
    patient_id="SIM-17",
    accession_number="SIM-ACC-1",
    birth_date="19700131",
    sex="F",
    patient_name="SIMULATED^PATIENT",
)
FACTS = StudyFacts(study_date="20260102", acquired="20260102030405.5", modality="CR")
ISSUED = datetime(2026, 1, 2, 3, 30, tzinfo=ZoneInfo("Asia/Kolkata"))


def a_result(uid="2.25.2001", **more):
    values = {
        "uid": uid,
        "route": Route.XRAY,
        "revision": 1,
        "study_instance_uid": STUDY,
        "series_instance_uid": "2.25.1501",
        "outcome": Outcome.READY,
        "usecase": "qxr",
        "triage": "Critical",
        "meaning": Meaning.ABNORMAL,
        "report": Report(
            impression="SIMULATED abnormal study",
            findings="SIMULATED opacity in the left lower zone.\n\nNo other.",
            findings_list=(("opacity", "SIMULATED opacity"), ("nodule", "SIMULATED nodule")),
        ),
        "model_version": "3.1",
    }
    return Result(**values | more)


def a_report(*results, **more):
    values = {
        "identity": IDENTITY,
        "facts": FACTS,
        "product": "qxr",
        "revision": 1,
        "results": results or (a_result(),),
        "issued": ISSUED,
    }
    return StudyReport(**values | more)


def qct_report(**more):
    silent = a_result(
        "2.25.3001", route=Route.CT, usecase="qct", triage=None, meaning=Meaning.UNKNOWN, report=Report(),
        model_version=None,
    )  # fmt: skip
    return a_report(silent, product="qct", **more)


def of_patient(report, **identity):
    return replace(report, identity=replace(report.identity, **identity))
