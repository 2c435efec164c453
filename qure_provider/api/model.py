"""What the service's answers mean, as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Route(StrEnum):
    """Which half of the contract a series follows; it decides every difference in how the service is asked."""

    XRAY = "xray"
    """CR and DX: a result for each image, asked by SOPInstanceUID; never computed."""
    CT = "ct"
    """CT: a result for each series, asked by SeriesInstanceUID, after compute."""


class ResultsVersion(StrEnum):
    """Which results endpoint answers for X-rays."""

    V1 = "v1"
    V2 = "v2"


class Outcome(StrEnum):
    """What is known about a resource's result. Never a bare status code."""

    READY = "ready"
    PENDING = "pending"
    INVALID = "invalid"
    UNSUPPORTED = "unsupported"
    NOT_UPLOADED = "not uploaded"
    NOT_COMPUTED = "not computed"
    DENIED = "denied"
    FAILED = "failed"
    TIMED_OUT = "timed out"

    @property
    def is_final(self) -> bool:
        """Whether asking again can no longer change it."""
        return self in _FINAL


_FINAL = frozenset({Outcome.READY, Outcome.INVALID, Outcome.UNSUPPORTED, Outcome.FAILED, Outcome.TIMED_OUT})


class Meaning(StrEnum):
    """What the vendor's triage word says on the route that it came by."""

    URGENT = "urgent"
    """CT and X-ray v1: Critical, needs an expert's eye at once."""
    ABNORMAL = "abnormal"
    """X-ray v2: Critical says only that something was found."""
    NO_FINDING = "no finding of this product"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ResourceRef:
    """What a result is asked for: one X-ray image or one CT series.

    Attributes:
        uid: SOPInstanceUID on the X-ray route, SeriesInstanceUID on the CT route.
        route: Which of the two it is.
        source_uid: The image's or series' own UID where ``uid`` is a pseudonym; empty where it is none.
    """

    uid: str
    route: Route
    source_uid: str = ""

    @property
    def own_uid(self) -> str:
        """The image's or series' own UID."""
        return self.source_uid or self.uid


@dataclass(frozen=True, slots=True)
class Report:
    """The inline report, in one shape whichever product or generation of the API wrote it.

    Attributes:
        impression: The short conclusion, verbatim; empty where the answer has none.
        findings: The findings' text, verbatim; empty where the answer has none.
        findings_list: (key, text) pairs, verbatim and in order.
        lines: The lines of a report that came as a list or one string.
    """

    impression: str = ""
    findings: str = ""
    findings_list: tuple[tuple[str, str], ...] = ()
    lines: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the service sent no report text at all (qCT never does)."""
        return not (self.impression or self.findings or self.findings_list or self.lines)

    @property
    def summary(self) -> str:
        """One line, with a mark where more follows.

        The impression's first; or else all lines of a report that came as lines; or else its findings' first line, or
        those that are listed.
        """
        listed = "; ".join(text or key for key, text in self.findings_list)
        text = self.impression or " ".join(line.strip() for line in self.lines) or self.findings or listed
        first, _, more = text.strip().partition("\n")
        return f"{first} [...]" if more.strip() else first


@dataclass(frozen=True, slots=True)
class ResultAnswer:
    """One answer of a results endpoint.

    Attributes:
        outcome: What it says about the resource.
        reason: Why, in fixed words or the service's own short reason; empty when ready.
        triage: The vendor's word, verbatim; None where missing.
        meaning: What that word says on this route. Anything but a clear positive is ``unknown``.
        usecase: The product, verbatim (``qxr``, ``qer``, ``qct``, ...); None where missing.
        report: The inline report.
        scores: Pathology to score, as sent (qER).
        decisions: Pathology to score-against-threshold, as sent (qER).
        model_version: As sent; None where not stated.
        files: Kind to URLs. The URLs grant access: they are left out of ``repr`` and must never be stored or logged.
        content: The whole answer without its URLs, safe to keep in the store; it may name the patient, so not to log.
        retry_after: Seconds the service asked us to wait before asking again; None where it did not say.
        stage: For a pending answer that can be told apart from "processing": ``validity`` for the transient-looking
            400, else empty. Only so many of those are waited for.
        warnings: What of the answer could not be read, in fixed words; it is still in ``content``.
    """

    outcome: Outcome
    reason: str = ""
    triage: str | None = None
    meaning: Meaning = Meaning.UNKNOWN
    usecase: str | None = None
    report: Report = field(default_factory=Report)
    scores: Mapping[str, float] = field(default_factory=dict)
    decisions: Mapping[str, bool] = field(default_factory=dict)
    model_version: str | None = None
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    content: Mapping[str, Any] = field(default_factory=dict, repr=False)
    retry_after: float | None = None
    stage: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def file_counts(self) -> dict[str, int]:
        """How many files of each kind the service offers; says nothing of where they are."""
        return {kind: len(urls) for kind, urls in sorted(self.files.items())}

    @property
    def digest(self) -> str:
        """Tells an answer that says something else from one that only has more files, or other addresses of them."""
        return digest_of(self.content)


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what an answer says, but for its files.

    Args:
        content: See ``ResultAnswer.content``.
    """
    said = {key: _without_files(value) if key == "result" else value for key, value in content.items()}
    return hashlib.sha256(json.dumps(_without_files(said), sort_keys=True).encode()).hexdigest()


def _without_files(value: Any) -> Any:
    return {key: item for key, item in value.items() if key != "files"} if isinstance(value, dict) else value


@dataclass(frozen=True, slots=True)
class ComputeAnswer:
    """One answer of the compute endpoint.

    Attributes:
        queued: True where this request queued the series.
        already_queued: True where the service says that it had been queued before (304).
        not_uploaded: True where the service does not hold the series (yet); retried, since an upload may still be
            settling.
    """

    queued: bool = False
    already_queued: bool = False
    not_uploaded: bool = False


@dataclass(frozen=True, slots=True)
class FileAcknowledgement:
    """What the service said of one uploaded file.

    Attributes:
        key: The form field the file was sent under.
        accepted: Whether it was registered.
        created: The service's own flag; None where missing (its meaning is not stated anywhere).
        license_expired: The service's own flag; may arrive inside a 200.
        message: Fixed text of the service about this file.
    """

    key: str
    accepted: bool
    created: bool | None = None
    license_expired: bool = False
    message: str = ""


@dataclass(frozen=True, slots=True)
class UploadAnswer:
    """One answer of the upload endpoint.

    Attributes:
        files: By form key; empty where the answer is of the older pages' shape, which has no per-file messages.
        series_instance_uids: The series that the service says it holds something of.
        series_counts: SeriesInstanceUID to NumberOfSeriesRelatedInstances. Whether it counts this request or all that
            is held is not stated anywhere.
    """

    files: Mapping[str, FileAcknowledgement] = field(default_factory=dict)
    series_instance_uids: tuple[str, ...] = ()
    series_counts: Mapping[str, int] = field(default_factory=dict)
