"""A study's report as ORU^R01: what a RIS must find in it, and what must never be in it."""

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import product as combinations

import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.hl7_reader import Message

from qure_provider.api.model import Meaning, Outcome, Report, Route
from qure_provider.dicom.model import Identity, StudyFacts
from qure_provider.reports import hl7
from qure_provider.reports.hl7 import Hl7ContentError, build_oru, message_control_id
from qure_provider.reports.hl7_fields import (
    AcknowledgementMode,
    Hl7Fields,
    Hl7SettingsError,
    Hl7Version,
    ProcessingId,
    ResultStatus,
    WithdrawnStatus,
)
from qure_provider.reports.hl7_syntax import CharacterSet
from qure_provider.reports.result import NO_TEXT, WITHDRAWN, Result
from qure_provider.reports.study_report import StudyReport

STUDY = "1.2.840.99999.1"
FIELDS = Hl7Fields(ProcessingId.TRAINING)

IDENTITY = Identity(
    study_instance_uid=STUDY,
    patient_id="SIM-0042",
    issuer_of_patient_id="SIMHOSP",
    accession_number="ACC-2026-000000000017",
    birth_date="19610203",
    sex="F",
    patient_name="SIMULATED^ANNA^B^DR^JR",
)
FACTS = StudyFacts(
    study_date="20260131",
    study_time="013000",
    study_description="CHEST PA & LATERAL",
    referring_physician="SIMULATED^DOCTOR",
    placer_order_number="PLACER-1",
    filler_order_number="FILLER-OF-THE-RIS",
    modality="DX",
    acquired="20260131013215.123456",
)


def result(uid="1.2.840.99999.1.1.1", **changes):
    values = {
        "uid": uid,
        "route": Route.XRAY,
        "revision": 1,
        "study_instance_uid": STUDY,
        "series_instance_uid": "1.2.840.99999.1.1",
        "outcome": Outcome.READY,
        "usecase": "qxr",
        "triage": "Critical",
        "meaning": Meaning.ABNORMAL,
        "report": Report(impression="Abnormal study", findings="Blunted angle.\n\nOpacity, right", findings_list=()),
    }
    return Result(**values | changes)


def report(*results, **changes):
    values = {
        "identity": IDENTITY,
        "facts": FACTS,
        "product": "qxr",
        "revision": 1,
        "results": results or (result(),),
        "issued": datetime(2026, 1, 31, 2, 0, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    }
    return StudyReport(**values | changes)


CT_REPORT = report(
    result(
        "1.2.840.99999.1.9",
        route=Route.CT,
        usecase="qct",
        triage="Routine",
        meaning=Meaning.NO_FINDING,
        report=Report(),
    ),
    product="qct",
)


def message(given=None, fields=FIELDS, **more):
    return Message(build_oru(given or report(), fields, **more))


def observations(message, code):
    return [segment for segment in message.all("OBX") if segment.values(3)[0] == code]


def observation(message, code, group="0"):
    (segment,) = [segment for segment in observations(message, code) if segment[4] == group]
    return segment


# Whose it is


def test_the_patient_is_exactly_the_sources():
    patient = message()["PID"]

    assert patient.values(3) == ["SIM-0042", "", "", "SIMHOSP"]
    assert patient.values(5) == ["SIMULATED", "ANNA", "B", "JR", "DR"]
    assert (patient[7], patient[8]) == ("19610203", "F")


def test_a_name_in_several_scripts_has_a_repetition_for_each():
    patient = message(report(identity=replace(IDENTITY, patient_name="YAMADA^TARO=山田^太郎=やまだ^たろう")))["PID"]

    assert [(name[:2], name[7]) for name in patient.repetitions(5)] == [
        (["YAMADA", "TARO"], "A"),
        (["山田", "太郎"], "I"),
        (["やまだ", "たろう"], "P"),
    ]


def test_what_the_source_does_not_say_is_not_said():
    bare = report(identity=Identity(STUDY, patient_id="SIM-0042"), facts=StudyFacts())

    sent = message(bare)

    assert sent["PID"].line == "PID|1||SIM-0042"
    assert [sent["OBR"][number] for number in (2, 7, 16, 18)] == ["", "", "", ""]


@pytest.mark.parametrize("changes", [{"patient_id": " "}, {"patient_id": ""}, {"study_instance_uid": ""}])
def test_a_report_of_nobody_is_refused(changes):
    identity = replace(IDENTITY, **changes)

    with pytest.raises(Hl7ContentError, match="patient ID"):
        build_oru(report(result(study_instance_uid=""), identity=identity), FIELDS)


def test_a_result_of_another_study_is_refused():
    with pytest.raises(Hl7ContentError, match="another study"):
        build_oru(report(result(), result("1.2", study_instance_uid="1.2.840.99999.2")), FIELDS)


def test_a_result_of_another_product_is_refused():
    with pytest.raises(Hl7ContentError, match="another product"):
        build_oru(report(result(usecase="qmsk")), FIELDS)


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.READY])
def test_only_ready_results_make_a_report(outcome):
    with pytest.raises(Hl7ContentError, match=str(outcome)):
        build_oru(report(result(), result("1.2", outcome=outcome)), FIELDS)


def test_a_report_without_results_is_refused():
    with pytest.raises(Hl7ContentError, match="no result"):
        build_oru(replace(report(), results=()), FIELDS)


# Which report it is


def test_numbers_are_ours_and_the_same_for_every_revision():
    first, second = message(), message(report(result(triage="Routine"), revision=2))

    assert first["OBR"].values(3) == [report().key, "QURE-AI"]
    assert first["OBR"].values(4) == ["AI-qxr", "AI analysis qxr", "99QURE"]
    assert [second["OBR"][number] for number in (3, 4)] == [first["OBR"][number] for number in (3, 4)]
    assert first["ORC"][3] == first["OBR"][3]


def test_order_numbers_come_from_the_source_and_the_radiologists_report_keeps_its_own():
    sent = message()

    assert (sent["OBR"].value(2), sent["ORC"].value(2), sent["OBR"].value(18)) == (
        "PLACER-1",
        "PLACER-1",
        "ACC-2026-000000000017",
    )
    assert "FILLER-OF-THE-RIS" not in sent.raw.decode()
    assert sent["OBR"][32] == ""


def test_products_of_one_study_are_different_reports():
    other = report(result(usecase="qmsk"), product="qmsk")

    assert message(other)["OBR"][3] != message()["OBR"][3]
    assert message(other)["OBR"][4] != message()["OBR"][4]


def test_the_same_report_makes_the_same_bytes_and_another_revision_another_control_id():
    ids = {
        message_control_id(given, withdrawn=withdrawn)
        for given, withdrawn in combinations([report(), report(revision=2), CT_REPORT], [False, True])
    }

    assert build_oru(report(), FIELDS) == build_oru(report(), FIELDS)
    assert message().control_id == message_control_id(report())
    assert len(ids) == 6
    assert all(len(control_id) == 20 and control_id.isalnum() for control_id in ids)


def test_times_have_their_zone_and_the_acquisition_none():
    sent = message()

    assert (sent["MSH"][7], sent["OBR"][22]) == ("20260131020000+0530", "20260131020000+0530")
    assert sent["OBR"][7] == "20260131013215.1234"


@pytest.mark.parametrize(
    ("facts", "time"),
    [
        ({"study_date": "20260131", "study_time": "0130"}, "202601310130"),
        ({"study_date": "2026.01.31", "study_time": "01:30:05"}, "20260131013005"),
        ({"study_date": "20260131", "study_time": "99"}, "20260131"),
        ({"study_date": "20260131"}, "20260131"),
        ({"study_date": "20260231"}, ""),
        ({"study_date": "yesterday"}, ""),
        ({"study_time": "0130"}, ""),
    ],
)
def test_the_acquisitions_time_is_as_precise_as_the_header(facts, time):
    assert message(report(facts=StudyFacts(**facts)))["OBR"][7] == time


def test_a_time_without_zone_is_refused():
    with pytest.raises(Hl7ContentError, match="zone"):
        build_oru(report(issued=datetime(2026, 1, 31)), FIELDS)  # noqa: DTZ001


# What it says


def test_it_says_what_it_is_in_notes_and_observations():
    given = report(result(model_version="3.1"), result("1.2"))

    sent = message(given)

    for text in (sent["NTE"].value(3), observation(sent, "AI-NOTICE").value(5)):
        assert "AI output, not verified by a radiologist" in text
        assert "Product: qxr. Model version: 3.1, not stated by the service." in text
    assert observation(sent, "AI-IMPRESSION", "1").values(18) == ["qxr (model version: 3.1)", "Qure.ai"]
    assert "not stated by the service" in observation(sent, "AI-IMPRESSION", "2").values(18)[0]


def test_observations_are_grouped_by_image_and_name_it():
    sent = message(report(result("1.2.3"), result("1.2.4", meaning=Meaning.NO_FINDING, triage="Routine")))

    assert [(item[4], item.value(5)) for item in observations(sent, "AI-IMAGE")] == [("1", "1.2.3"), ("2", "1.2.4")]
    assert [(item[4], item.value(5)) for item in observations(sent, "AI-TRIAGE")] == [
        ("1", "Critical"),
        ("2", "Routine"),
    ]
    assert [item[1] for item in sent.all("OBX")] == [str(n) for n in range(1, len(sent.all("OBX")) + 1)]


def test_an_observation_is_known_by_identifier_and_group():
    finding = (("nodule", "Nodule left"), ("nodule", "Nodule right"))
    given = report(result(report=Report(findings_list=finding)), result("1.2", report=Report(lines=("a", "b"))))

    sent = message(given, replace(FIELDS, include_scores=True))

    keys = [(segment[3], segment[4]) for segment in sent.all("OBX")]
    assert len(keys) == len(set(keys))
    assert observation(sent, "AI-FINDING.nodule", "1").value(5) == "Nodule left\nNodule right"
    assert observation(sent, "AI-REPORT", "2").value(5) == "a\nb"


@pytest.mark.parametrize(
    ("meaning", "flag"),
    [(Meaning.URGENT, "AA"), (Meaning.ABNORMAL, "A"), (Meaning.UNKNOWN, ""), (Meaning.NO_FINDING, "")],
)
def test_the_word_and_its_meaning_are_apart_and_nothing_is_flagged_normal(meaning, flag):
    sent = message(report(result(triage="Word", meaning=meaning)))

    assert (observation(sent, "AI-MEANING", "1").value(5), observation(sent, "AI-MEANING", "1")[8]) == (meaning, flag)
    assert (observation(sent, "AI-TRIAGE", "1").value(5), observation(sent, "AI-TRIAGE", "1")[8]) == ("Word", "")
    assert (observation(sent, "AI-STUDY-MEANING").value(5), observation(sent, "AI-STUDY-MEANING")[8]) == (meaning, flag)


def test_the_study_has_the_worst_of_its_images():
    routine = result("1.2", triage="Routine", meaning=Meaning.NO_FINDING)

    assert observation(message(report(routine, result())), "AI-STUDY-MEANING").value(5) == "abnormal"
    unknown = report(routine, result(triage=None, meaning=Meaning.UNKNOWN))
    assert observation(message(unknown), "AI-STUDY-MEANING").value(5) == "unknown"
    assert observation(message(unknown), "AI-TRIAGE", "2").value(5) == "not stated by the service"


def test_texts_are_verbatim():
    sent = message()

    assert observation(sent, "AI-IMPRESSION", "1").value(5) == "Abnormal study"
    findings = observation(sent, "AI-FINDINGS", "1")
    assert (findings[2], findings[5]) == ("FT", r"Blunted angle.\.br\\.br\Opacity, right")


def test_a_product_without_inline_report_says_nothing_about_findings():
    sent = message(CT_REPORT)

    assert observation(sent, "AI-SERIES", "1").value(5) == "1.2.840.99999.1.9"
    assert observation(sent, "AI-REPORT", "1").value(5) == NO_TEXT
    assert "no findings" not in sent.raw.decode().lower()


def test_scores_go_only_by_setting():
    given = report(result(scores={"SCORE_A": 1e-7, "SCORE_B": 1.0}, decisions={"SCORE_A": False, "SCORE_B": True}))

    without, sent = message(given), message(given, replace(FIELDS, include_scores=True))

    assert "SCORE" not in without.raw.decode()
    assert (observation(sent, "AI-SCORE.SCORE_A", "1")[2], observation(sent, "AI-SCORE.SCORE_A", "1")[5]) == (
        "NM",
        "0.0000001",
    )
    assert observation(sent, "AI-DECISION.SCORE_A", "1").value(5) == "not above the product's threshold"
    assert observation(sent, "AI-DECISION.SCORE_B", "1").value(5) == "above the product's threshold"


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(Hl7ContentError, match="score"):
        build_oru(report(result(scores={"A": float("nan")})), replace(FIELDS, include_scores=True))


def test_the_pdf_goes_only_by_setting(tmp_path):
    content = b"%PDF-1.7\n" + bytes(range(256)) * 1000
    (tmp_path / "report.pdf").write_bytes(content)
    given = report(pdf=tmp_path / "report.pdf")

    without, sent = message(given), message(given, replace(FIELDS, include_pdf=True))

    assert observations(without, "AI-PDF") == []
    pdf = observation(sent, "AI-PDF")
    assert (pdf[2], pdf.values(5)[:4]) == ("ED", ["", "AP", "PDF", "Base64"])
    assert base64.b64decode(pdf.values(5)[4]) == content


def test_a_file_that_is_no_pdf_is_refused(tmp_path):
    (tmp_path / "report.pdf").write_bytes(b"<html>")

    with pytest.raises(Hl7ContentError, match="PDF"):
        build_oru(report(pdf=tmp_path / "report.pdf"), replace(FIELDS, include_pdf=True))


def test_a_pdf_that_no_message_should_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(hl7, "MAX_PDF_BYTES", 100)
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7" + bytes(100))

    with pytest.raises(Hl7ContentError, match="larger than a message may hold"):
        build_oru(report(pdf=tmp_path / "report.pdf"), replace(FIELDS, include_pdf=True))


# What is never said


@pytest.mark.parametrize(
    ("status", "withdrawn"), combinations(ResultStatus, [False, True]), ids=lambda value: getattr(value, "name", value)
)
def test_no_setting_makes_it_final(status, withdrawn):
    sent = message(CT_REPORT, replace(FIELDS, report_status=status), withdrawn=withdrawn)

    statuses = {sent["OBR"][25]} | {item[11] for item in sent.all("OBX")}
    assert statuses == ({"C", "W"} if withdrawn else {status.value})


@pytest.mark.parametrize("status", ["F", "C", "R", ""])
def test_a_status_that_is_none_of_ours_is_refused(status):
    with pytest.raises(Hl7SettingsError, match="report_status: must be one of R, P"):
        Hl7Fields(ProcessingId.TRAINING, report_status=status)


def test_a_withdrawal_repeats_every_identifier_and_no_value(tmp_path):
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7")
    given = report(result(scores={"A": 0.5}), result("1.2", meaning=Meaning.URGENT), pdf=tmp_path / "report.pdf")
    fields = replace(FIELDS, include_scores=True, include_pdf=True)

    before, after = message(given, fields), message(given, fields, withdrawn=True)

    assert after["OBR"][3] == before["OBR"][3]
    assert after.control_id != before.control_id
    assert [(item[3], item[4]) for item in after.all("OBX")] == [(item[3], item[4]) for item in before.all("OBX")]
    assert {item[11] for item in after.all("OBX")} == {"W"}
    assert {item[8] for item in after.all("OBX")} == {""}
    ours = [item for item in after.all("OBX") if item.values(3)[2] == "99QURE"]
    assert {item.value(5) for item in ours} == {WITHDRAWN}
    assert after["NTE"].value(3).startswith("WITHDRAWN")


def test_the_order_status_of_a_withdrawal_is_a_setting():
    fields = replace(FIELDS, withdrawn_status=WithdrawnStatus.WRONG)

    assert message(fields=fields, withdrawn=True)["OBR"][25] == "W"


# How a hospital wants it


def test_the_header_is_as_set():
    fields = Hl7Fields(
        ProcessingId.PRODUCTION,
        version=Hl7Version.V2_4,
        sending_facility="SIMHOSP",
        receiving_application="RIS^1.2.3^ISO",
        receiving_facility="RADIOLOGY",
        acknowledgement=AcknowledgementMode.COMMIT,
    )

    header = message(fields=fields)["MSH"]

    assert [header[number] for number in (3, 4, 6, 9, 11, 12, 15, 16, 18)] == [
        "QURE-AI",
        "SIMHOSP",
        "RADIOLOGY",
        "ORU^R01^ORU_R01",
        "P",
        "2.4",
        "AL",
        "NE",
        "UNICODE UTF-8",
    ]
    assert header.values(5) == ["RIS", "1.2.3", "ISO"]


def test_the_study_is_named_where_ihe_wants_it():
    (study,) = [item for item in message().all("OBX") if item[3] == "113014^DICOM Study^DCM"]

    assert (study[2], study.value(5)) == ("ST", STUDY)


def test_places_are_the_connections_to_choose():
    places = {
        "OBR-18": "",
        "OBR-19": "{accession_number}",
        "OBR-29": "^{filler_order_number}",
        "PID-3": "{patient_id}^^^SIMHOSP&1.2.3&ISO^MR",
        "PV1-2": "O",
        "ZDS-1": "{study_instance_uid}^^Application^DICOM",
        "OBX 113014^DICOM Study^DCM": "",
        "OBX STATION^Station^L": "{station_name}",
        "OBX REGION^Region^L": "{modality} of {study_description}",
    }

    sent = message(fields=replace(FIELDS, places=places))

    assert [sent["OBR"][number] for number in (18, 19)] == ["", "ACC-2026-000000000017"]
    assert sent["OBR"].values(29) == ["", "FILLER-OF-THE-RIS"]
    assert sent["PID"][3] == "SIM-0042^^^SIMHOSP&1.2.3&ISO^MR"
    assert (sent["PV1"][2], sent.names[2]) == ("O", "PV1")
    assert sent["ZDS"].values(1) == [STUDY, "", "Application", "DICOM"]
    texts = {item[3]: item.value(5) for item in sent.all("OBX")}
    assert texts["REGION^Region^L"] == "DX of CHEST PA & LATERAL"
    assert not {"113014^DICOM Study^DCM", "STATION^Station^L"} & set(texts)


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ({"OBR-25": "F"}, "OBR-25 is not to be chosen"),
        ({"OBR-32": "SIMULATED"}, "OBR-32 is not to be chosen"),
        ({"MSH-10": "1"}, "MSH-10 is not to be chosen"),
        ({"PID-5": "{patient_name}"}, "PID-5 is not to be chosen"),
        ({"OBX-11": "F"}, "is no place"),
        ({"OBR-18.1": "{accession_number}"}, "is no place"),
        ({"OBX ": "{accession_number}"}, "must be OBX, a blank"),
        ({"OBX A|B": "{accession_number}"}, "must be OBX, a blank"),
        ({"PID-3": "{accession_number}"}, "must be one value with {patient_id}"),
        ({"PID-3": "{patient_id}-1"}, "must be one value with {patient_id}"),
        ({"PID-3": "{patient_id}^^^A~{accession_number}"}, "must be one value with {patient_id}"),
        ({"PID-3": ""}, "must be one value with {patient_id}"),
        ({"OBR-3": "{accession_number}"}, "must be one value with {report_number}"),
        ({"OBR-4": "AI-{revision}"}, "must be there, and name nothing but {product}"),
        ({"OBR-4": ""}, "must be there, and name nothing but {product}"),
        ({"ZDS-1": "{patient}"}, "names what there is not: patient"),
        ({"ZDS-1": "{}"}, "no brace without a name"),
        ({"ZDS-1": "A|B"}, r"no \| or"),
        ({"ZDS-1": "A\\"}, r"no \| or"),
        ({"ZDS-1": "A\rOBX|1"}, "no line end"),
        ({"ZDS-1": 7}, "must be a text"),
    ],
)
def test_places_that_would_break_a_rule_are_refused(places, said):
    with pytest.raises(Hl7SettingsError, match=said):
        Hl7Fields(ProcessingId.TRAINING, places=places)


def test_a_name_in_the_header_cannot_hold_a_delimiter():
    with pytest.raises(Hl7SettingsError, match="receiving_application"):
        Hl7Fields(ProcessingId.TRAINING, receiving_application="RIS|P")


def test_a_character_set_that_does_not_hold_a_name_is_a_matter_of_settings():
    given = report(identity=replace(IDENTITY, patient_name="MÜLLER^JÖRG"))

    assert message(given, replace(FIELDS, character_set=CharacterSet.LATIN_1))["PID"].values(5) == ["MÜLLER", "JÖRG"]
    with pytest.raises(Hl7SettingsError, match="character_set: ASCII does not hold"):
        build_oru(given, replace(FIELDS, character_set=CharacterSet.ASCII))


def test_damaged_text_is_refused():
    with pytest.raises(Hl7ContentError, match="damaged"):
        build_oru(report(result(report=Report(impression="\ud800"))), FIELDS)


@pytest.mark.parametrize("character_set", CharacterSet)
def test_no_character_set_uses_the_byte_of_a_delimiter_for_anything_else(character_set):
    others = "".join(map(chr, (*range(0x80, 0xD800), *range(0xE000, 0x30000))))

    assert not set(b"|^~\\&\r\x0b\x1c") & set(others.encode(character_set.codec, "ignore"))


# What a second reader makes of it


@pytest.mark.parametrize("version", Hl7Version)
def test_hl7apy_finds_it_valid(version, tmp_path):
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7")
    given = report(
        result(scores={"A": 0.5}, decisions={"A": True}),
        result("1.2", report=Report(findings_list=(("nodule", "Nodule"),))),
        pdf=tmp_path / "report.pdf",
    )
    fields = replace(FIELDS, version=version, include_scores=True, include_pdf=True, places={"PV1-2": "O"})

    for withdrawn in (False, True):
        text = build_oru(given, fields, withdrawn=withdrawn).decode()
        # Its strict parser takes any OBX-5 for an ST of at most 199 characters; its validator does not.
        parsed = parse_message(text, validation_level=VALIDATION_LEVEL.TOLERANT)
        assert parsed.validate()
        assert parsed.version == version


def test_the_device_has_no_field_in_2_3_1():
    sent = message(fields=replace(FIELDS, version=Hl7Version.V2_3_1))

    assert {item[18] for item in sent.all("OBX")} == {""}
    assert "Model version" in observation(sent, "AI-NOTICE").value(5)


# Whatever is in it


def test_delimiters_are_escaped_as_the_standard_says():
    sent = message(report(result(report=Report(impression="a|b^c&d~e\\f\r\ng\x1ch"))))

    assert observation(sent, "AI-IMPRESSION", "1")[5] == r"a\F\b\S\c\T\d\R\e\E\f\.br\g\X1C\h"


def test_no_text_deletes_what_the_receiver_has():
    null = '""'
    given = report(result(report=Report(impression=null)), identity=replace(IDENTITY, accession_number=null, sex=null))

    sent = message(given)

    for field in (sent["OBR"][18], sent["PID"][8], observation(sent, "AI-IMPRESSION", "1")[5]):
        assert field == "\\X2222\\"


ANYTHING = st.text(
    st.one_of(
        st.sampled_from('|^~\\&\r\n\x0b\x1c"\x00\x85\u2028é山EFSTRX.br{}'), st.characters(exclude_categories=["Cs"])
    ),
    max_size=12,
)
IDENTITIES = st.builds(
    Identity,
    study_instance_uid=st.just(STUDY),
    patient_id=ANYTHING.filter(str.strip),
    issuer_of_patient_id=ANYTHING,
    accession_number=ANYTHING,
    birth_date=ANYTHING,
    sex=ANYTHING,
    patient_name=ANYTHING,
)
FACTS_OF_ANYTHING = st.builds(StudyFacts, **dict.fromkeys(StudyFacts.__dataclass_fields__, ANYTHING))
RESULTS = st.builds(
    result,
    uid=ANYTHING,
    triage=ANYTHING,
    usecase=st.none(),
    model_version=st.none() | ANYTHING,
    meaning=st.sampled_from(Meaning),
    scores=st.dictionaries(ANYTHING, st.floats(allow_nan=False, allow_infinity=False), max_size=2),
    report=st.builds(
        Report,
        impression=ANYTHING,
        findings=ANYTHING,
        findings_list=st.lists(st.tuples(ANYTHING, ANYTHING), max_size=3).map(tuple),
        lines=st.lists(ANYTHING, max_size=3).map(tuple),
    ),
)
REPORTS = st.builds(
    report,
    RESULTS,
    RESULTS,
    identity=IDENTITIES,
    facts=FACTS_OF_ANYTHING,
    product=ANYTHING.filter(bool),
    revision=st.integers(1, 10**9),
    issued=st.datetimes(min_value=datetime(1900, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
ALL_FIELDS = st.builds(
    Hl7Fields,
    st.sampled_from(ProcessingId),
    version=st.sampled_from(Hl7Version),
    report_status=st.sampled_from(ResultStatus),
    withdrawn_status=st.sampled_from(WithdrawnStatus),
    include_scores=st.booleans(),
    places=st.just({f"ZZZ-{at}": f"{{{name}}}" for at, name in enumerate(sorted(StudyFacts.__dataclass_fields__), 1)}),
)


def lines(text):
    """A text as formatted text can carry it: every end of a line is one."""
    for end in ("\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"):
        text = text.replace(end, "\n")
    return text


@given(REPORTS, ALL_FIELDS, st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_text_becomes_structure(given, fields, withdrawn):
    raw = build_oru(given, fields, withdrawn=withdrawn)
    sent = Message(raw)

    observed = [name for name in sent.names if name == "OBX"]
    expected = ["MSH", "PID", "ORC", "OBR", "NTE", *observed]
    assert sent.names in (expected, [*expected, "ZZZ"])
    assert len(raw.splitlines()) == len(sent.segments)
    assert not {0x0B, 0x1C} & set(raw)
    assert len(sent.control_id) <= 20
    assert {sent["OBR"][25]} | {item[11] for item in sent.all("OBX")} <= {"R", "P", "C", "M", "X", "W"}
    assert not {item[8] for item in sent.all("OBX")} - {"", "A", "AA"}


@given(REPORTS, ALL_FIELDS)
@settings(max_examples=150, deadline=None)
def test_every_text_is_read_as_it_was_written(given, fields):
    sent = Message(build_oru(given, replace(fields, include_scores=False)))

    identity = given.identity
    assert sent["PID"].values(3)[0] == identity.patient_id
    assert (sent["PID"].values(3) + [""] * 3)[3] == identity.issuer_of_patient_id
    assert (sent["PID"].value(8), sent["OBR"].value(18)) == (identity.sex, identity.accession_number)
    own_segment = {at: value for segment in sent.all("ZZZ") for at, value in enumerate(segment.all_values(), 1)}
    for at, name in enumerate(sorted(StudyFacts.__dataclass_fields__), 1):
        if name not in ("study_date", "acquired", "referring_physician"):
            assert own_segment.get(at, "") == getattr(given.facts, name)
    for at, item in enumerate(given.results, 1):
        group = str(at)
        assert observation(sent, "AI-TRIAGE", group).value(5) == (item.triage or "not stated by the service")
        if item.report.impression:
            assert observation(sent, "AI-IMPRESSION", group).value(5) == lines(item.report.impression)
        if item.report.findings:
            assert observation(sent, "AI-FINDINGS", group).value(5) == lines(item.report.findings)
        if item.report.lines:
            assert observation(sent, "AI-REPORT", group).value(5) == lines("\n".join(item.report.lines))
        for key, text in item.report.findings_list:
            assert lines(text) in observation(sent, f"AI-FINDING.{key}", group).value(5)


@given(ANYTHING)
@example('""')
@example("A^B^C^D^E^F=G=H=I")
@settings(max_examples=150, deadline=None)
def test_a_name_is_read_as_it_was_written(name):
    names = message(report(identity=replace(IDENTITY, patient_name=name)))["PID"].repetitions(5)

    groups = [group for group in name.split("=", 2) if group]
    padded = [(read + [""] * 5)[:5] for read in names]
    assert [[family, given, middle, prefix, suffix] for family, given, middle, suffix, prefix in padded][
        : len(groups)
    ] == [[*group.split("^", 4), "", "", "", ""][:5] for group in groups]


@given(REPORTS)
@settings(max_examples=40, deadline=None)
def test_a_second_reader_counts_the_same_segments(given):
    raw = build_oru(given, FIELDS)

    parsed = parse_message(raw.decode(), find_groups=False)

    assert [segment.name for segment in parsed.children] == Message(raw).names
