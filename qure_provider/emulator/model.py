"""What the control API speaks: plans, faults, and what was seen."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Kind(StrEnum):
    """The kinds of requests that are told apart."""

    UPLOAD = "upload"
    COMPUTE = "compute"
    RESULTS = "results"
    ASSET = "asset"


class At(StrEnum):
    """The moment of a request at which a fault strikes."""

    REQUEST = "request"
    """Before anything is carried out: nothing is registered or queued."""
    ANSWER = "answer"
    """After everything is carried out, before the first byte of the answer."""
    BODY = "body"
    """In the middle of the answer's body."""


class PlannedOutcome(StrEnum):
    """What a resource comes to."""

    RESULT = "result"
    INVALID = "invalid"
    """An unusable scan: 206 on X-ray v2, else 400."""
    INVALID_AS_400 = "invalid as 400"
    """The same, but 400 on X-ray v2 too: the contract names both."""
    UNSUPPORTED = "unsupported"
    """400, "not implemented"."""
    DENIED = "denied"
    """403: not in this workspace."""
    STUCK = "stuck"
    """Under process, for ever."""


class Plan(BaseModel):
    """What becomes of one resource, or of all of one study. Everything left out is as without a plan.

    Attributes:
        outcome: What it comes to.
        triage: ``triage_status``, verbatim; by default it follows from the findings.
        findings: Keys of what is found (see ``findings.CATALOGUE``); by default drawn from the UID.
        usecase: ``usecase``, verbatim, and so the product; by default decided from the header.
        processing_seconds: Overrides the setting.
        validity_seconds: For so long after the start, results v1 answers 400 "Validity not determined yet!" rather than
            202.
        kinds: Which kinds of files the result offers; by default all of the product.
        delays: Kind to seconds after the result is ready at which it is first offered.
        missing: Kinds that are offered but answered 404 when downloaded.
        attributes: Kind (or ``*`` for all) to DICOM keyword to value, put into the DICOM objects made: another
            patient's data, say. None removes the attribute.
        patch: Merged into the JSON of a ready result; null removes a field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: PlannedOutcome = PlannedOutcome.RESULT
    triage: str | None = None
    findings: tuple[str, ...] | None = None
    usecase: str | None = None
    processing_seconds: float | None = Field(default=None, ge=0)
    validity_seconds: float = Field(default=0, ge=0)
    kinds: tuple[str, ...] | None = None
    delays: dict[str, float] = Field(default_factory=dict)
    missing: tuple[str, ...] = ()
    attributes: dict[str, dict[str, str | None]] = Field(default_factory=dict)
    patch: dict[str, Any] = Field(default_factory=dict)


class Fault(BaseModel):
    """Something that goes wrong with the next requests; each request suffers at most one, the oldest that fits.

    Attributes:
        kind: Which kind of request suffers.
        uid: Only requests about this SOPInstanceUID, SeriesInstanceUID or StudyInstanceUID; None takes any.
        skip: How many fitting requests pass unharmed first.
        times: How many requests suffer; None goes on until faults are cleared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    uid: str | None = None
    skip: int = Field(default=0, ge=0)
    times: int | None = Field(default=1, ge=1)


class Answer(Fault):
    """A different answer: any status, an HTML page, JSON of the wrong shape.

    Attributes:
        at: Whether the request is carried out all the same (``answer``) or not (``request``).
        status: Status code.
        headers: Headers added (Retry-After, Location, Content-Type, ...).
        body: Text of the body.
        json_body: Body as JSON; takes precedence over ``body``.
    """

    effect: Literal["answer"] = "answer"
    at: Literal[At.REQUEST, At.ANSWER] = At.REQUEST
    status: int = Field(default=500, ge=200, le=599)
    headers: dict[str, str] = Field(default_factory=dict)
    body: str = ""
    json_body: Any = None


class Reset(Fault):
    """The connection is reset.

    Attributes:
        at: When.
        after_bytes: Bytes of the request's body taken in (``at=request``) or of the answer's body sent (``at=body``)
            first.
    """

    effect: Literal["reset"] = "reset"
    at: At = At.REQUEST
    after_bytes: int = Field(default=0, ge=0)


class Truncate(Fault):
    """The connection is closed in an orderly way before the whole body was sent.

    Attributes:
        after_bytes: Bytes of the body sent first; None sends half of it.
    """

    effect: Literal["truncate"] = "truncate"
    after_bytes: int | None = Field(default=None, ge=0)


class Stall(Fault):
    """Nothing comes for a while, then all goes on.

    Attributes:
        at: When.
        seconds: For how long; None until the client gives up.
    """

    effect: Literal["stall"] = "stall"
    at: At = At.ANSWER
    seconds: float | None = Field(default=None, ge=0)


class Drip(Fault):
    """The body comes slowly.

    Attributes:
        chunk: Bytes at a time.
        seconds: Between two of them.
    """

    effect: Literal["drip"] = "drip"
    chunk: int = Field(default=1, ge=1)
    seconds: float = Field(default=0.1, ge=0)


class Oversize(Fault):
    """The body is preceded by so many blanks.

    Attributes:
        size: How many.
    """

    effect: Literal["oversize"] = "oversize"
    size: int = Field(default=64 * 1024 * 1024, ge=1)


class LoseFiles(Fault):
    """Files of an upload are taken and not registered.

    Attributes:
        count: How many, the last ones first; None loses all.
        acknowledged: Whether ``messages`` says all the same that they were registered; otherwise it has no entry for
            them.
    """

    effect: Literal["lose files"] = "lose files"
    kind: Kind = Kind.UPLOAD
    count: int | None = Field(default=None, ge=1)
    acknowledged: bool = True


class LicenseExpired(Fault):
    """Every file of an upload is answered ``license_expired: true`` inside a 200, and is never processed."""

    effect: Literal["license expired"] = "license expired"
    kind: Kind = Kind.UPLOAD


class OtherPatient(Fault):
    """A DICOM object is given with other attributes than the study's; anything that is not DICOM is given as it is.

    Attributes:
        attributes: Keyword to value; None removes the attribute.
    """

    effect: Literal["other patient"] = "other patient"
    kind: Kind = Kind.ASSET
    attributes: dict[str, str | None] = {"PatientID": "SIMULATED-OTHER", "PatientName": "Simulated^Other"}


class MissingFiles(Fault):
    """A result leaves out files.

    Attributes:
        kinds: Which kinds; empty leaves out all.
    """

    effect: Literal["missing files"] = "missing files"
    kind: Kind = Kind.RESULTS
    kinds: tuple[str, ...] = ()


AnyFault = Annotated[
    Answer | Reset | Truncate | Stall | Drip | Oversize | LoseFiles | LicenseExpired | OtherPatient | MissingFiles,
    Field(discriminator="effect"),
]


class RequestRecord(BaseModel):
    """One request as it was seen.

    Attributes:
        at: When it came, seconds since the epoch.
        kind: Its kind.
        uid: What it was about: the UID in its path, or the resource's of a file; empty for uploads.
        status: Status of the answer; 0 where the connection ended without one.
        seconds: Until the answer was ready.
        path: Its path without the query (the signature of a file URL is left out).
        user_agent: Its User-Agent.
        size: Bytes of its body as far as it came, where it is an upload.
        fault: The effect it suffered; empty if none.
    """

    at: float
    kind: Kind
    uid: str = ""
    status: int = 0
    seconds: float = 0
    path: str = ""
    user_agent: str = ""
    size: int = 0
    fault: str = ""


class ReceivedFile(BaseModel):
    """One file as it was received.

    Attributes:
        at: When its request was whole, seconds since the epoch.
        request: Number of the upload that it came in, from 1.
        number: Its own number, from 1, over all uploads.
        key: The form field's name.
        file_name: The part's file name; None where it had none.
        headers: The part's headers, names in lower case.
        dialect: Media type of the request.
        size: Bytes.
        sha256: Of the bytes, in hex.
        path: Where they lie; only the header where ``keep_received`` is off.
        study_instance_uid: As in its header; empty where it is no DICOM.
        series_instance_uid: Idem.
        sop_instance_uid: Idem.
        registered: Whether the service now holds it.
        created: Whether it did not hold it before.
    """

    at: float
    request: int
    number: int
    key: str
    file_name: str | None
    headers: dict[str, str]
    dialect: str
    size: int
    sha256: str
    path: str
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    sop_instance_uid: str = ""
    registered: bool = False
    created: bool = False

    @property
    def uids(self) -> tuple[str, str, str]:
        """Its UIDs, from the image's to the study's."""
        return self.sop_instance_uid, self.series_instance_uid, self.study_instance_uid


class ResourceState(BaseModel):
    """One resource (an X-ray image or a series) as the emulator sees it now.

    Attributes:
        uid: SOPInstanceUID (X-ray) or SeriesInstanceUID.
        series_instance_uid: Its series.
        study_instance_uid: Its study.
        usecase: Product; ``not_implemented`` where there is none.
        images: How many are held.
        computed_images: How many the current result was computed from.
        revision: How many times it was computed.
        started_at: When the current computation began, seconds since the epoch; None if never.
        ready_at: When its result is or was available; None if never.
    """

    uid: str
    series_instance_uid: str
    study_instance_uid: str
    usecase: str
    images: int
    computed_images: int
    revision: int
    started_at: float | None
    ready_at: float | None
