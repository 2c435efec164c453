"""A study's report by one product as an HL7 v2 message: ORU^R01, unsolicited observations (HL7 v2.5.1, chapter 7)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from qure_provider.api.model import Meaning, Outcome, Route
from qure_provider.reports.hl7_fields import OBSERVATION, Hl7Fields, Hl7SettingsError, Hl7Version
from qure_provider.reports.hl7_syntax import (
    ENCODING_CHARACTERS,
    CharacterSet,
    components,
    escape,
    formatted,
    number,
    patient_name,
    person,
    segment,
    time_of,
    time_of_dicom,
)
from qure_provider.reports.result import MODEL_NOT_STATED, NO_TEXT, UNVERIFIED, WITHDRAWN, Result
from qure_provider.reports.study_report import StudyReport

CODING_SYSTEM = "99QURE"
"""Of our own observation identifiers: no code of the radiologist's report (LOINC's impression, say) is ever used."""

OF_THE_STUDY = "0"
"""OBX-4 of what is said of no single image."""

MAX_PDF_BYTES = 32 * 1024 * 1024
WITHDRAWN_STATUS = "W"
NOT_STATED = "not stated by the service"

_FLAGS = {Meaning.URGENT: "AA", Meaning.ABNORMAL: "A"}
"""OBX-8 (table 0078). Nothing is ever flagged N: a product that found nothing has not found the study normal."""

_SOURCES = {
    Route.XRAY: ("AI-IMAGE", "SOP Instance UID of the image analysed"),
    Route.CT: ("AI-SERIES", "Series Instance UID of the series analysed"),
}


class Hl7ContentError(ValueError):
    """The report must not be sent as it is. The message says why, without patient data."""


@dataclass(frozen=True, slots=True)
class _Observation:
    """One OBX, its parts already as HL7 writes them.

    Attributes:
        identifier: OBX-3.
        kind: OBX-2.
        value: OBX-5.
        group: OBX-4, the number of the image that it is about; 0 for the study.
        flag: OBX-8.
        device: OBX-18; empty for what no AI said.
    """

    identifier: str
    kind: str
    value: str
    group: str = OF_THE_STUDY
    flag: str = ""
    device: str = ""


def message_control_id(report: StudyReport, *, withdrawn: bool = False) -> str:
    """Return MSH-10 of a report's message.

    Args:
        report: What it says.
        withdrawn: Whether the message takes it back.

    Returns:
        Twenty capital letters and digits, the same whenever the message is sent again, others for another revision or
        for the withdrawal, so that a receiver that got it twice can tell.
    """
    source = f"{report.key}|{report.revision}|{'withdrawn' if withdrawn else 'report'}"
    return f"Q{hashlib.sha256(source.encode()).hexdigest()[:19].upper()}"


def build_oru(report: StudyReport, fields: Hl7Fields, *, withdrawn: bool = False) -> bytes:
    r"""Write a report as ORU^R01.

    ===========  =======================================================================================
    where        what
    ===========  =======================================================================================
    PID          patient ID with its issuer, name, birth date and sex, as in the source's header
    OBR-2        placer order number, where the source has one
    OBR-3        the report's own number in our own namespace, the same for all revisions
    OBR-4        our own service code, the same for all revisions
    OBR-18       accession number
    OBR-25       ``R``, not verified (``P`` by setting); of a withdrawal by ``WithdrawnStatus``
    OBR-32       empty: nobody has interpreted it
    NTE, OBX     that this is unverified AI output, of which product and model version
    OBX-4        number of the image or series, from 1; ``0`` for what is said of the study
    OBX-8        ``AA`` for urgent and ``A`` for abnormal, at the meaning of a triage word; never ``N``
    OBX-11       as OBR-25; ``W`` in a withdrawal
    OBX-18       product and model version (from HL7 2.4; 2.3.1 has no such field)
    ===========  =======================================================================================

    Texts of the service go verbatim as FT, its triage word beside what that means. Findings, scores and decisions have
    the service's key in their identifier. The same report makes the same bytes each time. A withdrawal repeats every
    identifier of the report, with a text that withdraws it in place of each value.

    Args:
        report: What it says; of a withdrawal, ``issued`` says when it was withdrawn.
        fields: The receiver's settings.
        withdrawn: Whether the report is taken back.

    Returns:
        The message in the settings' character set, segments ended by a carriage return, without MLLP's frame.

    Raises:
        Hl7ContentError: If it must not be sent: no patient ID, a result that is not ready or of another study, an
            unusable PDF, a damaged text.
        Hl7SettingsError: If the character set cannot hold one of its characters.
        OSError: If the PDF cannot be read.
    """
    _check(report)
    try:
        segments = _segments(report, fields, withdrawn=withdrawn)
        return "".join(f"{line}\r" for line in segments).encode(fields.character_set.codec)
    except UnicodeEncodeError:
        if fields.character_set is CharacterSet.UTF_8:
            raise Hl7ContentError("a text is damaged: it holds what is no character") from None
        raise Hl7SettingsError(
            f"character_set: {fields.character_set} does not hold all characters of the report. "
            "Choose UNICODE UTF-8 if the receiver can read it"
        ) from None


def _check(report: StudyReport) -> None:
    if not (report.identity.patient_id.strip() and report.identity.study_instance_uid and report.product):
        raise Hl7ContentError("patient ID, StudyInstanceUID or product is not known")
    if report.issued.utcoffset() is None:
        raise Hl7ContentError("the time of issue has no zone")
    if not report.results:
        raise Hl7ContentError("there is no result")
    for result in report.results:
        if result.outcome is not Outcome.READY:
            raise Hl7ContentError(f"a result is {result.outcome}, and only what is ready is a report")
        if result.study_instance_uid not in ("", report.identity.study_instance_uid):
            raise Hl7ContentError("a result is of another study")
        if result.usecase not in (None, report.product):
            raise Hl7ContentError("a result is of another product")


def _segments(report: StudyReport, fields: Hl7Fields, *, withdrawn: bool) -> Iterator[str]:
    text = partial(escape, character_set=fields.character_set)
    free_text = partial(formatted, character_set=fields.character_set)
    issued = time_of(report.issued)
    accept, application = fields.acknowledgement.requested
    places = fields.filled(_values(report, fields))
    status = WITHDRAWN_STATUS if withdrawn else fields.report_status.value

    header = {
        2: ENCODING_CHARACTERS,
        3: fields.sending_application,
        4: fields.sending_facility,
        5: fields.receiving_application,
        6: fields.receiving_facility,
        7: issued,
        9: "ORU^R01^ORU_R01",
        10: message_control_id(report, withdrawn=withdrawn),
        11: fields.processing_id.value,
        12: fields.version.value,
        15: accept,
        16: application,
        18: fields.character_set.value,
    }
    identity = report.identity
    patient = {
        1: "1",
        5: patient_name(identity.patient_name, fields.character_set),
        7: time_of_dicom(identity.birth_date),
        8: text(identity.sex),
    }
    request = {1: "1", 22: issued, 25: fields.withdrawn_status.value if withdrawn else status}

    yield segment("MSH", header | _placed("MSH", places))
    yield segment("PID", patient | _placed("PID", places))
    if visit := _placed("PV1", places):
        yield segment("PV1", {1: "1"} | visit)
    yield segment("ORC", {1: "RE", 3: places["OBR-3"]} | _placed("ORC", places))
    yield segment("OBR", request | _placed("OBR", places))
    yield segment("NTE", {1: "1", 2: "L", 3: free_text(_notice(report, withdrawn=withdrawn))})
    for position, item in enumerate(_observations(report, fields, places, withdrawn=withdrawn), 1):
        yield segment(
            "OBX",
            {
                1: str(position),
                2: item.kind,
                3: item.identifier,
                4: item.group,
                5: item.value,
                8: item.flag,
                11: status,
                18: item.device if fields.version is not Hl7Version.V2_3_1 else "",
            },
        )
    for name in sorted({place[:3] for place in places if place.startswith("Z")}):
        yield segment(name, _placed(name, places))


def _placed(name: str, places: Mapping[str, str]) -> dict[int, str]:
    prefix = f"{name}-"
    return {int(place.removeprefix(prefix)): text for place, text in places.items() if place.startswith(prefix)}


def _values(report: StudyReport, fields: Hl7Fields) -> dict[str, str]:
    identity, facts = report.identity, report.facts
    values = {name: escape(value, fields.character_set) for name, value in (asdict(identity) | asdict(facts)).items()}
    date = time_of_dicom(facts.study_date)
    return values | {
        "patient_name": patient_name(identity.patient_name, fields.character_set),
        "birth_date": time_of_dicom(identity.birth_date),
        "referring_physician": person(facts.referring_physician, fields.character_set),
        "study_date": date,
        "acquired": time_of_dicom(facts.acquired)
        or (date and time_of_dicom(facts.study_date + facts.study_time))
        or date,
        "product": escape(report.product, fields.character_set),
        "report_number": report.key,
        "revision": str(report.revision),
    }


def _notice(report: StudyReport, *, withdrawn: bool) -> str:
    lines = [
        UNVERIFIED,
        f"Product: {report.product}. Model version: {_version(report.results)}.",
        f'"{Meaning.NO_FINDING}" does not say that the study is normal.',
        *filter(None, [report.lack]),
    ]
    return "\n".join([WITHDRAWN, *lines] if withdrawn else lines)


def _version(results: Iterable[Result]) -> str:
    return ", ".join(dict.fromkeys(result.model_version or MODEL_NOT_STATED for result in results))


def _observations(
    report: StudyReport, fields: Hl7Fields, places: Mapping[str, str], *, withdrawn: bool
) -> Iterator[_Observation]:
    writer = _Writer(report, fields, withdrawn=withdrawn)
    yield writer.text("AI-NOTICE", "AI output, unverified", _notice(report, withdrawn=withdrawn))
    yield writer.meaning("AI-STUDY-MEANING", "AI triage, the worst of the study", report.meaning)
    for place, content in places.items():
        if place.startswith(OBSERVATION):
            yield _Observation(place.removeprefix(OBSERVATION), "ST", content)
    for position, result in enumerate(report.results, 1):
        yield from _of_result(_Writer(report, fields, withdrawn=withdrawn, result=result, group=str(position)), result)
    if fields.include_pdf and report.pdf is not None:
        yield writer.pdf(report.pdf)


def _of_result(writer: _Writer, result: Result) -> Iterator[_Observation]:
    yield writer.value("ST", *_SOURCES[result.route], result.uid)
    yield writer.value("ST", "AI-TRIAGE", "AI triage, the service's word", result.triage or NOT_STATED)
    yield writer.meaning("AI-MEANING", "AI triage, what the word means", result.meaning)
    report = result.report
    if report.is_empty:
        yield writer.text("AI-REPORT", "AI report", NO_TEXT)
    if report.impression:
        yield writer.text("AI-IMPRESSION", "AI impression", report.impression)
    if report.findings:
        yield writer.text("AI-FINDINGS", "AI findings", report.findings)
    if report.lines:
        yield writer.text("AI-REPORT", "AI report", "\n".join(report.lines))
    for key in dict.fromkeys(key for key, _ in report.findings_list):
        texts = [text for other, text in report.findings_list if other == key]
        yield writer.text(f"AI-FINDING.{key}", f"AI finding {key}", "\n".join(texts))
    if writer.fields.include_scores:
        for key, score in result.scores.items():
            yield writer.score(f"AI-SCORE.{key}", f"AI score {key}", score)
        for key, is_above in result.decisions.items():
            word = "above" if is_above else "not above"
            yield writer.value("ST", f"AI-DECISION.{key}", f"AI decision {key}", f"{word} the product's threshold")


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes observations of a report, or of one of its results; in a withdrawal, what takes them back."""

    report: StudyReport
    fields: Hl7Fields
    withdrawn: bool
    result: Result | None = None
    group: str = OF_THE_STUDY

    def value(self, kind: str, code: str, name: str, value: str, *, flag: str = "") -> _Observation:
        return self._written(code, name, kind, escape(value, self.fields.character_set), flag)

    def text(self, code: str, name: str, text: str) -> _Observation:
        return self._written(code, name, "FT", formatted(text, self.fields.character_set))

    def meaning(self, code: str, name: str, meaning: Meaning) -> _Observation:
        return self.value("ST", code, name, meaning.value, flag=_FLAGS.get(meaning, ""))

    def score(self, code: str, name: str, score: float) -> _Observation:
        try:
            return self._written(code, name, "NM", number(score))
        except ValueError:
            raise Hl7ContentError("a score is no finite number") from None

    def pdf(self, path: Path) -> _Observation:
        code, name = "AI-PDF", "AI report as PDF"
        if self.withdrawn:
            return self._written(code, name, "FT", "")
        if path.stat().st_size > MAX_PDF_BYTES:
            raise Hl7ContentError("the PDF is larger than a message may hold. Switch PDFs off for this connection")
        content = path.read_bytes()
        if not content.startswith(b"%PDF"):
            raise Hl7ContentError("the report's PDF is no PDF")
        return self._written(
            code, name, "ED", components("", "AP", "PDF", "Base64", base64.b64encode(content).decode())
        )

    def _written(self, code: str, name: str, kind: str, value: str, flag: str = "") -> _Observation:
        text = partial(escape, character_set=self.fields.character_set)
        if self.withdrawn:
            kind, value, flag = "FT", formatted(WITHDRAWN, self.fields.character_set), ""
        results = self.report.results if self.result is None else (self.result,)
        return _Observation(
            identifier=components(text(code), text(name), CODING_SYSTEM),
            kind=kind,
            value=value,
            group=self.group,
            flag=flag,
            device=components(text(f"{self.report.product} (model version: {_version(results)})"), "Qure.ai"),
        )
