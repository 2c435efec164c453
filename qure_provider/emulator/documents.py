"""Files of a result that are not DICOM and no pictures: PDF, JSON, HL7."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fpdf import FPDF

from qure_provider.emulator.findings import SIMULATED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pydicom

    from qure_provider.emulator.findings import Findings


class _Page(FPDF):
    def header(self) -> None:
        self._mark()

    def footer(self) -> None:
        self.set_y(-15)
        self._mark()

    def _mark(self) -> None:
        self.set_font("Helvetica", "B", 14)
        self.set_text_color(200, 0, 0)
        self.cell(0, 8, SIMULATED, align="C", new_x="LMARGIN", new_y="NEXT")


def pdf(source: pydicom.Dataset, title: str, lines: Sequence[str], impression: str) -> bytes:
    """Write a report as PDF, marked at the head and foot of each page.

    Args:
        source: Header of an image of the study.
        title: Headline.
        lines: The report.
        impression: The conclusion.

    Returns:
        The PDF.
    """
    page = _Page()
    # Its clock would make each PDF differ.
    page.set_creation_date(datetime(2000, 1, 1, tzinfo=UTC))
    page.set_title(f"{title} ({SIMULATED})")
    page.add_page()
    page.set_text_color(0)
    page.set_font("Helvetica", "B", 16)
    page.cell(0, 12, title, new_x="LMARGIN", new_y="NEXT")
    page.set_font("Helvetica", size=11)
    about = [
        f"Patient: {source.get('PatientName', '')} ({source.get('PatientID', '')})",
        f"Accession number: {source.get('AccessionNumber', '')}   Study date: {source.get('StudyDate', '')}",
        "",
        *lines,
        "",
        f"Impression: {impression}",
    ]
    for line in about:
        # The built-in fonts know Latin-1 only.
        page.multi_cell(0, 7, line.encode("latin-1", "replace").decode("latin-1"), new_x="LMARGIN", new_y="NEXT")
    return bytes(page.output())


def machine_readable(source: pydicom.Dataset, findings: Findings, revision: int, images: int) -> bytes:
    """Write the machine-readable result of qCT; its real schema is not published.

    Args:
        source: Header of an image of the series.
        findings: What is found.
        revision: Of the result.
        images: How many were analysed.

    Returns:
        JSON.
    """
    return json.dumps(
        {
            "simulated": SIMULATED,
            "StudyInstanceUID": str(source.StudyInstanceUID),
            "SeriesInstanceUID": str(source.SeriesInstanceUID),
            "PatientID": str(source.get("PatientID") or ""),
            "images": images,
            "revision": revision,
            "scores": findings.scores,
            "findings": [{"key": key, "text": text} for key, text in findings.sentences],
        },
        indent=2,
    ).encode()


def hl7(source: pydicom.Dataset, made_at: float, lines: Sequence[str], impression: str) -> bytes:
    """Write the report as an HL7 v2.5 ORU^R01; the version and type that the service sends are not stated anywhere.

    Args:
        source: Header of an image of the series.
        made_at: When the result was made, seconds since the epoch.
        lines: The report.
        impression: The conclusion.

    Returns:
        The message, segments ended by carriage returns, UTF-8.
    """
    when = datetime.fromtimestamp(made_at, UTC).strftime("%Y%m%d%H%M%S+0000")
    study = str(source.StudyInstanceUID)
    control_id = hashlib.sha256(f"{study}{when}".encode()).hexdigest()[:20]

    observation = {2: "TX", 3: "SIM^Simulated report", 11: "P"}
    texts = [*lines, f"Impression: {impression}"]
    segments = [
        _segment(
            "MSH",
            {2: "^~\\&", 3: "SIMULATED", 4: "SIMULATED", 7: when, 9: "ORU^R01^ORU_R01", 10: control_id}
            | {11: "T", 12: "2.5", 18: "UNICODE UTF-8"},
        ),
        _segment(
            "PID",
            {1: 1, 3: _escaped(source.get("PatientID")), 5: _name(str(source.get("PatientName") or ""))}
            | {7: _escaped(source.get("PatientBirthDate")), 8: _escaped(source.get("PatientSex"))},
        ),
        _segment("NTE", {1: 1, 3: SIMULATED}),
        _segment(
            "OBR",
            {1: 1, 3: control_id, 4: "SIM^Simulated AI analysis", 7: when}
            | {18: _escaped(source.get("AccessionNumber")), 25: "P"},
        ),
        *(_segment("OBX", observation | {1: number, 5: _escaped(text)}) for number, text in enumerate(texts, 1)),
        _segment("OBX", {1: len(texts) + 1, 2: "ST", 3: "113014^DICOM Study^DCM", 5: study, 11: "P"}),
    ]
    return "".join(f"{segment}\r" for segment in segments).encode()


def _segment(name: str, fields: Mapping[int, object]) -> str:
    # MSH-1 is the separator itself.
    first = 2 if name == "MSH" else 1
    return "|".join([name, *(str(fields.get(number, "")) for number in range(first, max(fields) + 1))])


def _escaped(value: object) -> str:
    text = str(value or "")
    for character, escape in (("\\", "E"), ("|", "F"), ("^", "S"), ("&", "T"), ("~", "R")):
        text = text.replace(character, f"\\{escape}\\")
    return text


def _name(person_name: str) -> str:
    """Turn a DICOM person name into an HL7 one: the same components, prefix and suffix the other way round."""
    family, given, middle, prefix, suffix = (person_name.partition("=")[0].split("^") + [""] * 5)[:5]
    return "^".join(_escaped(part) for part in (family, given, middle, suffix, prefix)).rstrip("^")
