"""A fetched result in one shape for every product: what ``result.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from qure_provider.api.model import Meaning, Outcome, Report, ResultAnswer, Route

SCHEMA = 1
UNVERIFIED = "AI output, not verified by a radiologist. Not for diagnosis on its own."
MODEL_NOT_STATED = "not stated by the service"
NO_TEXT = "The service gives no text here; its report is in the files. This does not mean that nothing was found."
"""What stands in a message where a result has files alone, as those of qCT."""
WITHDRAWN = "WITHDRAWN. This AI result was taken back; do not use it."
"""What stands first in whatever takes a result back."""


class ResultFormatError(ValueError):
    """A stored result is not of a shape that this version reads."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of a result.

    Attributes:
        kind: The service's key for it (``sc``, ``report_pdf``, ...).
        name: Its file name beside ``result.json``.
        media: What its content shows it to be (``application/dicom``, ``application/pdf``, ...).
        size: In bytes.
        sha256: Of its content, hexadecimal.
    """

    kind: str
    name: str
    media: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A file of a result that is not handed on, because it could not be put back whole to whom it is about.

    Attributes:
        kind: The service's key for it.
        position: Its place among the files of its kind, from 0.
        name: Its file name beside ``result.json``. It names nobody but by pseudonyms.
        reason: Why, in fixed words.
    """

    kind: str
    position: int
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Result:
    """One resource's result.

    Attributes:
        uid: What it was asked by: a SOPInstanceUID or a SeriesInstanceUID.
        route: Which of the two.
        revision: Which sending of the resource it answers.
        study_instance_uid: The study; empty where the asker did not know it.
        series_instance_uid: The series; empty where the asker did not know it.
        outcome: Always a final one.
        usecase: The product as the service named it; None where it did not.
        triage: The vendor's word, verbatim; None where missing.
        meaning: What that word says on this route.
        report: The report's text, verbatim.
        scores: Pathology to score, as sent.
        decisions: Pathology to decision, as sent.
        model_version: As sent; None where not stated.
        assets: Its files.
        held: Files of it that are not handed on; only where images were de-identified.
        reason: Why there is no result, where there is none.
        warnings: What of the answer could not be read, in fixed words.
    """

    uid: str
    route: Route
    revision: int
    study_instance_uid: str
    series_instance_uid: str
    outcome: Outcome
    usecase: str | None
    triage: str | None
    meaning: Meaning
    report: Report
    scores: Mapping[str, float] = field(default_factory=dict)
    decisions: Mapping[str, bool] = field(default_factory=dict)
    model_version: str | None = None
    assets: tuple[Asset, ...] = ()
    held: tuple[HeldFile, ...] = ()
    reason: str = ""
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        answer: ResultAnswer,
        assets: tuple[Asset, ...],
        *,
        uid: str,
        route: Route,
        revision: int = 1,
        study_instance_uid: str = "",
        series_instance_uid: str = "",
        held: tuple[HeldFile, ...] = (),
    ) -> Result:
        """Put an answer and its fetched files together."""
        return cls(
            uid=uid,
            route=route,
            revision=revision,
            study_instance_uid=study_instance_uid,
            series_instance_uid=series_instance_uid,
            outcome=answer.outcome,
            usecase=answer.usecase,
            triage=answer.triage,
            meaning=answer.meaning,
            report=answer.report,
            scores=dict(answer.scores),
            decisions=dict(answer.decisions),
            model_version=answer.model_version,
            assets=assets,
            held=held,
            reason=answer.reason,
            warnings=answer.warnings,
        )

    @property
    def impression(self) -> str:
        """One line for a table: the report's conclusion, or that there is no inline report."""
        return self.report.summary or ("" if self.outcome is not Outcome.READY else "no inline report; see the files")

    def to_json(self) -> dict[str, Any]:
        """Return what ``result.json`` holds."""
        value = asdict(self)
        value["assets"] = [asdict(asset) for asset in self.assets]
        value["held"] = [asdict(file) for file in self.held]
        return {
            "schema": SCHEMA,
            "notice": UNVERIFIED,
            **value,
            "model_version": self.model_version or MODEL_NOT_STATED,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Result:
        """Read what ``to_json`` wrote.

        Raises:
            ResultFormatError: If it is of another schema or not a result at all.
        """
        schema = value.get("schema") if isinstance(value, Mapping) else None
        if schema != SCHEMA:
            raise ResultFormatError(f"result.json has schema {schema!r}; this version reads {SCHEMA}.")
        try:
            report = value["report"]
            version = value["model_version"]
            return cls(
                uid=value["uid"],
                route=Route(value["route"]),
                revision=value["revision"],
                study_instance_uid=value["study_instance_uid"],
                series_instance_uid=value["series_instance_uid"],
                outcome=Outcome(value["outcome"]),
                usecase=value["usecase"],
                triage=value["triage"],
                meaning=Meaning(value["meaning"]),
                report=Report(
                    impression=report["impression"],
                    findings=report["findings"],
                    findings_list=tuple((key, text) for key, text in report["findings_list"]),
                    lines=tuple(report["lines"]),
                ),
                scores=value["scores"],
                decisions=value["decisions"],
                model_version=None if version == MODEL_NOT_STATED else version,
                assets=tuple(Asset(**asset) for asset in value["assets"]),
                held=tuple(HeldFile(**file) for file in value.get("held", ())),
                reason=value["reason"],
                warnings=tuple(value.get("warnings", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ResultFormatError(f"result.json is damaged: {type(error).__name__}.") from None
