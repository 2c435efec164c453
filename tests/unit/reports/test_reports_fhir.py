import base64
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fhir_reports import FACTS, ISSUED, STUDY, a_report, a_result, of_patient, qct_report
from support.fhir_server import LABELLED, references

from qure_provider.api.model import Meaning, Report
from qure_provider.dicom.model import StudyFacts
from qure_provider.reports import fhir
from qure_provider.reports.fhir import FhirOptions, ReportStatus, document_part, report_parts, transaction
from qure_provider.reports.fhir_text import conclusion, effective_time
from qure_provider.reports.result import MODEL_NOT_STATED, NO_TEXT, UNVERIFIED, WITHDRAWN

PATIENT = "Patient/17"
DEFAULT = FhirOptions()


def parts_of(report, options=DEFAULT):
    return report_parts(report, PATIENT, options)


def of_kind(report, kind, options=DEFAULT):
    return [part.resource for part in parts_of(report, options) if part.kind == kind]


def head_of(report, options=DEFAULT):
    return of_kind(report, "DiagnosticReport", options)[0]


def observations(report, options=DEFAULT):
    """(kind, name) of each observation to the observation."""
    return {
        (resource["code"]["coding"][0]["code"], resource["code"]["text"]): resource
        for resource in of_kind(report, "Observation", options)
    }


def texts_in(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)


# Unverified, and not more.


def test_a_report_is_partial_unless_preliminary_is_chosen():
    assert head_of(a_report())["status"] == "partial"
    assert head_of(a_report(), FhirOptions(status=ReportStatus.PRELIMINARY))["status"] == "preliminary"


@pytest.mark.parametrize("status", ["final", "partial", None])
def test_no_other_status_can_be_asked_for(status):
    with pytest.raises(TypeError):
        FhirOptions(status=status)


def test_a_final_report_is_refused_even_where_the_type_was_got_round(monkeypatch):
    options = FhirOptions()
    object.__setattr__(options, "status", type("Forged", (), {"value": "final"}))

    with pytest.raises(ValueError, match="never final"):
        report_parts(a_report(), PATIENT, options)


def test_everything_an_ai_says_is_labelled_unverified_and_names_its_device():
    report = a_report(a_result(), a_result("2.25.2002", model_version=None))
    for part in parts_of(report):
        labels = [coding["code"] for coding in part.resource.get("meta", {}).get("security", [])]
        assert labels == (["AIAST"] if part.kind in LABELLED else [])
        if part.kind != "Device":
            assert any(UNVERIFIED in text for text in texts_in(part.resource))
    devices = {part.full_url: part.resource for part in parts_of(report) if part.kind == "Device"}
    assert [device["version"] for device in devices.values()] == [[{"value": "3.1"}], [{"value": MODEL_NOT_STATED}]]
    assert {(device["manufacturer"], device["deviceName"][0]["name"]) for device in devices.values()} == {
        ("Qure.ai", "qxr")
    }
    for observation in of_kind(report, "Observation"):
        device = devices[observation["device"]["reference"]]
        about_the_second = "2.25.2002" in json.dumps(observation["note"])
        assert device["version"][0]["value"] == (MODEL_NOT_STATED if about_the_second else "3.1")
    agents = {agent["who"]["reference"] for agent in of_kind(report, "Provenance")[0]["agent"]}
    assert agents == set(devices)
    assert "model version: 3.1, not stated by the service" in head_of(report)["conclusion"]


def test_the_conclusion_begins_with_what_it_is():
    lines = head_of(a_report())["conclusion"].split("\n")

    assert lines[0] == UNVERIFIED
    assert lines[1] == "AI analysis by qxr (Qure.ai), model version: 3.1."
    assert lines[2] == "Triage: abnormal."


@pytest.mark.parametrize("meaning", Meaning)
def test_nothing_is_ever_coded_normal(meaning):
    report = a_report(a_result(meaning=meaning, triage="Routine"))
    for resource in [part.resource for part in parts_of(report)] + [document_part(report, PATIENT, DEFAULT).resource]:
        assert "interpretation" not in resource
        assert "conclusionCode" not in resource
        codes = {text.lower() for text in texts_in(resource)}
        assert codes.isdisjoint({"n", "normal", "negative", "neg"})
    value = observations(report)["meaning", "AI triage meaning"]["valueCodeableConcept"]
    if meaning in (Meaning.NO_FINDING, Meaning.UNKNOWN):
        assert "does not mean normal" in value["text"]
        assert "does not mean normal" in head_of(report)["conclusion"]


def test_a_missing_triage_word_is_said_to_be_unknown():
    said = observations(a_report(a_result(triage=None, meaning=Meaning.UNKNOWN)))

    assert said["triage", "AI triage word"]["dataAbsentReason"]["coding"][0]["code"] == "unknown"
    assert said["meaning", "AI triage meaning"]["valueCodeableConcept"]["coding"][0]["code"] == "unknown"


def test_the_report_has_the_worst_meaning_and_each_image_its_own():
    report = a_report(
        a_result(meaning=Meaning.NO_FINDING, triage="Routine"),
        a_result("2.25.2002", meaning=Meaning.URGENT, triage="Critical"),
    )

    said = head_of(report)["conclusion"]

    assert "\nTriage: urgent.\n" in said
    assert "image 2.25.2001, triage: no finding of this product, which does not mean normal" in said
    assert "image 2.25.2002, triage: urgent" in said


def test_a_study_that_lacks_an_image_says_so_and_is_never_without_finding():
    found_nothing = a_result(meaning=Meaning.NO_FINDING)
    text = head_of(a_report(found_nothing, lacking=2))["conclusion"]
    assert "Triage: unknown" in text.split("\n\n")[0]
    assert "2 images of the study have no result: nothing is said of what they show." in text
    alone = head_of(a_report(found_nothing, lacking=1))["conclusion"]
    assert "1 image of the study has no result: nothing is said of what it shows." in alone
    assert "triage: no finding of this product" in text
    assert "Triage: abnormal" in head_of(a_report(a_result(meaning=Meaning.ABNORMAL), lacking=2))["conclusion"]


def test_a_report_without_text_says_that_it_is_in_the_files():
    report = qct_report()

    for words in (
        head_of(report)["conclusion"],
        document_part(report, PATIENT, DEFAULT).resource["description"],
    ):
        assert "its report is in the files" in words
        assert NO_TEXT in words
        assert "no finding" not in words.lower()
    assert {kind for kind, _ in observations(report)} == {"triage", "meaning"}


# Whose, and which study.


def test_patient_study_and_order_are_only_referred_to():
    parts = parts_of(a_report(), FhirOptions(accession_system="urn:oid:1.9"))

    assert {part.kind for part in parts} == {"Device", "Observation", "DiagnosticReport", "Provenance"}
    for part in parts:
        if part.kind in ("Observation", "DiagnosticReport"):
            assert part.resource["subject"] == {"reference": PATIENT}
    head = next(part.resource for part in parts if part.kind == "DiagnosticReport")
    study = {"system": "urn:dicom:uid", "value": f"urn:oid:{STUDY}"}
    assert head["imagingStudy"] == [{"type": "ImagingStudy", "identifier": study}]
    order = head["basedOn"][0]
    assert (order["type"], order["identifier"]["system"]) == ("ServiceRequest", "urn:oid:1.9")
    assert order["identifier"]["value"] == "SIM-ACC-1"
    assert "reference" not in order
    identifiers = {identifier["value"] for identifier in head["identifier"]}
    assert "SIM-ACC-1" not in identifiers


def test_a_study_without_accession_names_no_order():
    report = of_patient(a_report(), accession_number=" ")

    assert "basedOn" not in head_of(report)
    related = document_part(report, PATIENT, DEFAULT).resource["context"]["related"]
    assert [reference["type"] for reference in related] == ["ImagingStudy"]


def test_nothing_of_the_patient_is_repeated():
    sent = json.dumps(transaction(parts_of(a_report()), {}, {}))

    for private in ("SIM-17", "SIMULATED^PATIENT", "19700131", "1970-01-31"):
        assert private not in sent


# The same each time.


def test_a_repeat_is_the_same_in_every_byte():
    report = a_report(a_result(), a_result("2.25.2002"))

    assert json.dumps(transaction(parts_of(report), {}, {})) == json.dumps(transaction(parts_of(report), {}, {}))


def test_a_revision_is_found_under_the_same_numbers_and_has_its_own_provenance():
    first, second = ({part.criterion: part for part in parts_of(a_report(revision=revision))} for revision in (1, 2))

    new = second.keys() - first.keys()
    assert {second[criterion].kind for criterion in new} == {"Provenance"}
    assert all(not second[criterion].replaces for criterion in new)
    head = head_of(a_report(revision=2))
    assert fhir.revision_of(head, a_report().key) == 2
    assert fhir.revision_of(head, "QURE0000000000000000") is None


def test_two_products_never_share_a_number():
    qxr, other = ({part.criterion for part in parts_of(a_report(product=product))} for product in ("qxr", "qmsk"))

    assert qxr.isdisjoint(other)


def test_findings_with_the_same_key_stay_apart():
    twice = Report(findings_list=(("nodule", "SIMULATED left"), ("nodule", "SIMULATED right"), ("", "SIMULATED")))
    parts = [part for part in parts_of(a_report(a_result(report=twice))) if part.kind == "Observation"]

    assert len({part.criterion for part in parts}) == len(parts) == 5
    said = [(part.resource["code"]["text"], part.resource.get("valueString")) for part in parts]
    assert ("nodule", "SIMULATED left") in said
    assert ("nodule", "SIMULATED right") in said
    assert ("AI finding", "SIMULATED") in said


def test_devices_are_created_once_and_the_rest_is_replaced():
    requests = {part.kind: part.request for part in parts_of(a_report())}

    assert requests["Device"]["method"] == requests["Provenance"]["method"] == "POST"
    assert requests["Device"]["ifNoneExist"].startswith(f"identifier={fhir.DEVICE_SYSTEM}|")
    assert requests["Provenance"]["ifNoneExist"].startswith("_tag=")
    assert requests["DiagnosticReport"] == {
        "method": "PUT",
        "url": f"DiagnosticReport?identifier={fhir.REPORT_SYSTEM}|{a_report().key}",
    }
    assert requests["Observation"]["url"].startswith(f"Observation?identifier={fhir.PART_SYSTEM}|")


def test_a_transaction_refers_only_back_and_to_the_patient():
    seen = {PATIENT}
    for entry in transaction(parts_of(a_report(a_result(), a_result("2.25.2002"))), {}, {})["entry"]:
        assert set(references(entry["resource"])) <= seen
        seen.add(entry["fullUrl"])


def test_what_the_server_has_already_is_left_out_and_referred_to():
    parts = parts_of(a_report())
    device = next(part for part in parts if part.kind == "Device")
    old = {"resourceType": "Observation", "id": "9"}

    bundle = transaction(parts, {device.full_url: "Device/3"}, {"Observation/9": old})

    assert bundle["entry"][0] == {"resource": old, "request": {"method": "PUT", "url": "Observation/9"}}
    assert device.full_url not in json.dumps(bundle)
    assert "Device/3" in set(references(bundle))


# By setting.


def test_the_pdf_goes_along_unless_it_is_left_out(tmp_path):
    pdf = tmp_path / "report.pdf"
    pdf.write_bytes(b"%PDF-1.4 SIMULATED \x00\xff")
    report = a_report(pdf=pdf)

    form = head_of(report)["presentedForm"][0]

    assert (form["contentType"], form["size"]) == ("application/pdf", len(pdf.read_bytes()))
    assert base64.b64decode(form["data"]) == pdf.read_bytes()
    assert "presentedForm" not in head_of(report, FhirOptions(include_pdf=False))
    assert "presentedForm" not in head_of(a_report())


def test_a_pdf_that_is_gone_is_an_error():
    with pytest.raises(OSError, match="nowhere"):
        parts_of(a_report(pdf=Path("/nowhere/report.pdf")))


def test_scores_and_negative_decisions_go_along_only_by_setting():
    result = a_result(scores={"bleed": 0.0625, "odd": float("nan")}, decisions={"bleed": True, "shift": False})
    report = a_report(result)

    without, with_scores = observations(report), observations(report, FhirOptions(include_scores=True))

    assert without["decision", "bleed"]["valueBoolean"] is True
    assert {kind for kind, _ in without} == {"triage", "meaning", "finding", "decision"}
    assert ("decision", "shift") not in without
    assert with_scores["decision", "shift"]["valueBoolean"] is False
    assert with_scores["score", "bleed"]["valueQuantity"] == {"value": 0.0625}
    assert with_scores["score", "odd"]["dataAbsentReason"]["coding"][0]["code"] == "error"
    assert "0.0625" not in json.dumps(transaction(parts_of(report), {}, {}))


# One document, where nothing else is taken.


def test_a_document_holds_the_pdf_and_says_what_it_is(tmp_path):
    pdf = tmp_path / "report.pdf"
    pdf.write_bytes(b"%PDF-1.4 SIMULATED")
    part = document_part(a_report(pdf=pdf), PATIENT, DEFAULT)
    document = part.resource

    assert part.replaces
    assert part.criterion == f"identifier={fhir.REPORT_SYSTEM}|{a_report().key}"
    assert (document["status"], document["docStatus"]) == ("current", "preliminary")
    assert [base64.b64decode(content["attachment"]["data"]) for content in document["content"]] == [pdf.read_bytes()]
    assert document["description"] == conclusion(a_report())
    assert set(references(document)) == {PATIENT, "#device-1"}
    assert "security" not in document["contained"][0].get("meta", {})
    assert fhir.revision_of(document, a_report().key) == 1


def test_a_document_without_pdf_holds_the_text():
    content = document_part(a_report(), PATIENT, DEFAULT).resource["content"]

    assert content[0]["attachment"]["contentType"] == "text/plain; charset=utf-8"
    assert base64.b64decode(content[0]["attachment"]["data"]).decode() == conclusion(a_report())


# Taken back.


def test_what_is_taken_back_says_so():
    head, document = head_of(a_report()), document_part(a_report(), PATIENT, DEFAULT).resource
    taken_back = fhir.in_error(head)

    assert fhir.is_in_error(taken_back)
    assert not fhir.is_in_error(head)
    assert taken_back["conclusion"].startswith(WITHDRAWN)
    assert taken_back["conclusion"].endswith(head["conclusion"])
    assert fhir.in_error(taken_back) == taken_back
    assert {**taken_back, "status": 0, "conclusion": 0} == {**head, "status": 0, "conclusion": 0}
    gone = fhir.in_error(document)
    assert (gone["status"], gone["docStatus"]) == ("entered-in-error", "entered-in-error")
    assert gone["description"].startswith(WITHDRAWN)
    observation = of_kind(a_report(), "Observation")[0]
    assert fhir.in_error(observation) == {**observation, "status": "entered-in-error"}


# When.


@pytest.mark.parametrize(
    ("acquired", "effective"),
    [
        ("20260102030405.5", "2026-01-02T03:04:05.500+05:30"),
        ("20260102030405.1234567", "2026-01-02T03:04:05.123+05:30"),
        ("20260102030405", "2026-01-02T03:04:05.000+05:30"),
        ("202601020304", "2026-01-02T03:04:00.000+05:30"),
        ("2026010203", "2026-01-02"),
        ("20260102", "2026-01-02"),
        ("202601", "2026-01"),
        ("2026", "2026"),
        ("19000101120000", "1900-01-01"),
    ],
)
def test_acquisition_is_told_in_the_hospitals_clock(acquired, effective):
    assert effective_time(StudyFacts(acquired=acquired), ZoneInfo("Asia/Kolkata")) == effective


@pytest.mark.parametrize("acquired", ["", "x", "2026010", "20261301", "20260102250000", "٢٠٢٦", "20260102+0100"])
def test_an_unreadable_acquisition_time_gives_way_to_the_studys(acquired):
    zone = ZoneInfo("Europe/Berlin")
    facts = StudyFacts(acquired=acquired, study_date="20260702", study_time="0304")

    assert effective_time(facts, zone) == "2026-07-02T03:04:00.000+02:00"
    assert effective_time(replace(facts, study_time="x"), zone) == "2026-07-02"
    assert effective_time(replace(facts, study_date="", study_time=""), zone) is None


def test_a_report_without_any_time_of_the_study_is_still_written():
    head = head_of(a_report(facts=StudyFacts()))

    assert "effectiveDateTime" not in head
    assert head["issued"] == "2026-01-02T03:30:00.000+05:30"


def test_a_time_of_issue_without_zone_is_an_error():
    with pytest.raises(ValueError, match="zone"):
        parts_of(a_report(issued=datetime(2026, 1, 2)))  # noqa: DTZ001


def test_what_would_not_be_fhir_is_refused_without_repeating_it():
    patient = ["SIM-17"]

    with pytest.raises(ValueError, match=r"^Observation would not be FHIR: .*subject") as caught:
        report_parts(a_report(), patient, DEFAULT)

    assert "SIM-17" not in str(caught.value)


# Any text survives.

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)
FHIR_STRING = re.compile(r"[ \r\n\t\S]+")
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def survives(original, said):
    """Whether every character is there in its place, but for those that no FHIR string can hold."""
    return len(original) == len(said) and all(
        after == before
        or (after == "\ufffd" and UNPRINTABLE.fullmatch(before))
        or (after == " " and (before.isspace() or before == "\ufeff"))
        for before, after in zip(original, said, strict=True)
    )


def all_strings_are_fhir(value):
    return all(FHIR_STRING.fullmatch(text) for text in texts_in(value))


@given(
    report=st.builds(
        Report,
        impression=ANY_TEXT,
        findings=ANY_TEXT,
        findings_list=st.lists(st.tuples(ANY_TEXT, ANY_TEXT), max_size=3).map(tuple),
        lines=st.lists(ANY_TEXT, max_size=3).map(tuple),
    ),
    triage=st.none() | ANY_TEXT,
    product=st.text(max_size=20),
    version=st.none() | ANY_TEXT,
    scores=st.dictionaries(ANY_TEXT, st.floats(), max_size=2),
    accession=ANY_TEXT,
    acquired=st.text("0123456789.", max_size=20),
)
@settings(max_examples=100, deadline=None)
def test_any_text_survives_as_valid_fhir(report, triage, product, version, scores, accession, acquired):
    result = a_result(report=report, triage=triage, model_version=version, scores=scores)
    study = a_report(result, product=product, facts=replace(FACTS, acquired=acquired))
    study = of_patient(study, accession_number=accession)
    options = FhirOptions(include_scores=True)

    bundle = transaction(parts_of(study, options), {}, {})

    sent = json.dumps(bundle, ensure_ascii=False, allow_nan=False).encode()
    assert json.loads(sent) == bundle
    assert all_strings_are_fhir(bundle)
    document = document_part(study, PATIENT, options).resource
    assert all_strings_are_fhir(document)
    conclusion = head_of(study, options)["conclusion"]
    for text in (report.impression, report.findings, "\n".join(report.lines)):
        if text.strip(" \t\r\n") and not text.isspace():
            assert any(
                survives(text, conclusion[start : start + len(text)])
                for start in range(len(conclusion) - len(text) + 1)
            )
    said = [o.get("valueString") for o in of_kind(study, "Observation", options) if _code(o) == "finding"]
    assert len(said) == len(report.findings_list)
    for (_, text), value in zip(report.findings_list, said, strict=True):
        assert survives(text, value) if value is not None else not text.replace("\ufeff", " ").strip()


def _code(observation):
    return observation["code"]["coding"][0]["code"]


@given(st.datetimes(timezones=st.timezones()))
@settings(max_examples=50, deadline=None)
def test_any_time_of_issue_in_any_zone_is_written_or_refused(issued):
    try:
        head = head_of(a_report(issued=issued))
    except ValueError:
        assert issued.utcoffset().total_seconds() % 60 or issued.year < 1000
        return
    assert datetime.fromisoformat(head["issued"]).astimezone(UTC) == issued.replace(
        microsecond=issued.microsecond // 1000 * 1000
    ).astimezone(UTC)


def test_the_time_of_issue_is_the_revisions():
    assert head_of(a_report(issued=ISSUED))["issued"] == "2026-01-02T03:30:00.000+05:30"
