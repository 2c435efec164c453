"""All results of one product for one study: what one clinical message says.

Receivers replace a report by its number. A message for each image would let a routine lateral view overwrite a critical
frontal one; so there is one for each study and product, and it carries the worst triage of its results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from qure_provider.api.model import Meaning, Route
from qure_provider.dicom.model import Identity, StudyFacts
from qure_provider.reports.result import Result

SEVERITY = (Meaning.URGENT, Meaning.ABNORMAL, Meaning.UNKNOWN, Meaning.NO_FINDING)
"""Worst first. Unknown stands before "no finding": it must never read as normal."""


@dataclass(frozen=True, slots=True)
class StudyReport:
    """One clinical message's content.

    Attributes:
        identity: Whose it is, exactly as it was sent.
        facts: What else the source says of the study.
        product: ``qxr``, ``qer``, ``qct``, ... as the service named it.
        revision: Grows with each change of the report, from 1.
        results: Ready results only, in order of series and UID; at least one.
        issued: When this revision was made, with its zone.
        lacking: How many other images (of CT: series) of the study were meant for it and have no result in it. Whatever
            they show, it is not said: a study that lacks one never reads as "no finding".
        pdf: The report as PDF, to be presented with it; None where there is none.
    """

    identity: Identity
    facts: StudyFacts
    product: str
    revision: int
    results: tuple[Result, ...]
    issued: datetime
    lacking: int = 0
    pdf: Path | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        """The report's own number, the same for every revision: 20 characters of capital letters and digits.

        It is derived from the study and the product, so that a repeat makes no second report, and carries nothing of
        the radiologist's report's identifiers.
        """
        return report_key(self.identity.study_instance_uid, self.product)

    @property
    def meaning(self) -> Meaning:
        """The worst of its results, of which what has none is unknown."""
        return worst([*(result.meaning for result in self.results), *[Meaning.UNKNOWN] * self.lacking])

    @property
    def lack(self) -> str:
        """That images have no result, as a sentence; empty where none lacks one."""
        if not self.lacking:
            return ""
        noun = "image" if self.results[0].route is Route.XRAY else "series"
        plural = "s" if noun == "image" and self.lacking > 1 else ""
        verb, what = ("has", "it shows") if self.lacking == 1 else ("have", "they show")
        return f"{self.lacking} {noun}{plural} of the study {verb} no result: nothing is said of what {what}."

    @property
    def model_versions(self) -> tuple[str, ...]:
        """The model versions that the service stated, each once, in order."""
        return tuple(dict.fromkeys(result.model_version for result in self.results if result.model_version))


def report_key(study_instance_uid: str, product: str) -> str:
    """Return the number of a study's report by one product; see ``StudyReport.key``."""
    source = f"{study_instance_uid}|{product}"
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    return f"QURE{digest[:16].upper()}"


def worst(meanings: Iterable[Meaning]) -> Meaning:
    """Return the worst of some meanings; ``unknown`` of none."""
    present = set(meanings)
    return next((meaning for meaning in SEVERITY if meaning in present), Meaning.UNKNOWN)
