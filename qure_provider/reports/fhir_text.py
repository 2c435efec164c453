"""A report's words and times as FHIR can hold them."""

from __future__ import annotations

import re
from datetime import datetime, tzinfo
from typing import Final

from qure_provider.api.model import Meaning, Report, Route
from qure_provider.dicom.model import StudyFacts
from qure_provider.reports.result import MODEL_NOT_STATED, NO_TEXT, UNVERIFIED, Result
from qure_provider.reports.study_report import StudyReport

MANUFACTURER: Final = "Qure.ai"
TITLE: Final = "AI analysis"
MEANING_TEXTS: Final = {
    Meaning.URGENT: "urgent",
    Meaning.ABNORMAL: "abnormal",
    Meaning.NO_FINDING: "no finding of this product, which does not mean normal",
    Meaning.UNKNOWN: "unknown, which does not mean normal",
}

_DAY: Final = len("YYYY-MM-DD")
_EXACT: Final = len("YYYY-MM-DDTHH:MM:SS.mmm+HH:MM")
_PRECISIONS: Final = {4: len("YYYY"), 6: len("YYYY-MM"), 8: _DAY, 10: _DAY, 12: _EXACT, 14: _EXACT}
"""Digits of a DICOM DT to characters of a FHIR dateTime, which knows no hour without minutes."""
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ODD_BLANK = re.compile(r"[^\S \t\r\n]|\ufeff")


def conclusion(report: StudyReport) -> str:
    """Write what a person reads first: that it is unverified, whose it is, what it means, then the report's text.

    Args:
        report: What it says.

    Returns:
        Lines of text.
    """
    versions = ", ".join(dict.fromkeys(result.model_version or MODEL_NOT_STATED for result in report.results))
    product = f"{TITLE} by {report.product} ({MANUFACTURER}), model version: {versions}."
    triage = f"Triage: {MEANING_TEXTS[report.meaning]}."
    sections = ["\n".join(filter(None, [UNVERIFIED, product, triage, report.lack]))]
    for result in report.results:
        if len(report.results) > 1 or report.lacking:
            sections.append(f"{subject_of(result)}, triage: {MEANING_TEXTS[result.meaning]}")
        sections.append(_report_text(result.report) or NO_TEXT)
    return "\n\n".join(sections)


def subject_of(result: Result) -> str:
    """Name the image or series that a result is about."""
    return f"{'image' if result.route is Route.XRAY else 'series'} {result.uid}"


def _report_text(report: Report) -> str:
    """The report's own words, all of them and none twice."""
    said = {line.strip() for text in (report.findings, *report.lines) for line in text.splitlines()}
    listed = [f"{key}: {text}" for key, text in report.findings_list if text.strip() and text.strip() not in said]
    labelled = (
        ("Impression", report.impression),
        ("Findings", report.findings),
        ("Report", "\n".join(report.lines)),
        ("Listed findings", "\n".join(listed)),
    )
    return "\n\n".join(f"{label}:\n{text}" for label, text in labelled if text.strip())


def effective_time(facts: StudyFacts, zone: tzinfo | None) -> str | None:
    """Tell when the images were taken, as FHIR ``dateTime``.

    Args:
        facts: What the source says.
        zone: Of the hospital's clock.

    Returns:
        As exact as the source says it; None where it does not, or not readably.
    """
    moments = (facts.acquired, facts.study_date + facts.study_time, facts.study_date)
    return next(filter(None, (_date_time(moment.strip(), zone) for moment in moments)), None)


def _date_time(moment: str, zone: tzinfo | None) -> str | None:
    """Read a DICOM DT without zone."""
    digits, _, fraction = moment.partition(".")
    precision = _PRECISIONS.get(len(digits))
    if precision is None or not moment.isascii() or not (digits + fraction).isdecimal():
        return None
    try:
        filled = digits + "00000101000000"[len(digits) :]
        exact = datetime.strptime(f"{filled}.{fraction[:6] or 0}", "%Y%m%d%H%M%S.%f").replace(tzinfo=zone)
    except ValueError:
        return None
    offset = exact.utcoffset()
    if offset is None or offset.seconds % 60:  # a local mean time of long ago, which FHIR cannot say
        precision = min(precision, _DAY)
    return exact.isoformat(timespec="milliseconds")[:precision]


def fitting(text: str) -> str:
    """Return a text as a FHIR string can hold it (FHIR R4, Datatypes, string).

    Args:
        text: Any.

    Returns:
        The text, of the same length: U+FFFD stands for what is no character, a blank for an unusual one. Empty where
        there is nothing but blanks.
    """
    held = _ODD_BLANK.sub(" ", _FORBIDDEN.sub("\ufffd", text))
    return held if held.strip() else ""
