"""How the emulator behaves, where the service's behaviour is a matter of account, generation or guess."""

from __future__ import annotations

import secrets
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Answers(StrEnum):
    """Which generation of answers is given."""

    CURRENT = "current"
    """The OpenAPI's."""
    OLDER = "older"
    """documentation.qure.ai: fewer fields on upload, one string as report, X-ray results by series too."""
    LEGACY = "legacy"
    """As current, but X-ray v1 results have the legacy shape (docs.qure.ai, Data Format Changes)."""


class Counting(StrEnum):
    """What ``NumberOfSeriesRelatedInstances`` counts; not stated anywhere."""

    HELD = "held"
    """All instances of the series held so far."""
    REQUEST = "request"
    """Those of this request."""


class MessageKeys(StrEnum):
    """How the entries of ``messages`` are named; not stated anywhere."""

    FORM = "form"
    """By the form field that the file came in."""
    NUMBERED = "numbered"
    """``file0``, ``file1``, ... in order of arrival, whatever the form fields were called."""


class Recompute(StrEnum):
    """What ``{"recompute": true}`` does; not described anywhere."""

    NEW = "new"
    """Results are "under process" until the new one is ready."""
    STALE = "stale"
    """The old result is given until the new one is ready."""
    IGNORED = "ignored"
    """304, and the old result for ever."""


class EmulatorSettings(BaseModel):
    """Everything that can be chosen about the emulator.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        storage: Folder for what is received and made, in one folder for each start; None takes a temporary one.
        token: What must follow ``Token `` in the Authorization header.
        source: What the Source header must say.
        require_user_agent: Whether a request without User-Agent is answered 400 (vendor: "errors may follow").
        answers: Which generation of answers is given.
        max_request_bytes: Largest request body on the wire; a larger one is answered 413. The older documentation asks
            for at most 100 MB and names no status; 413 in HTML is a guess: what an nginx in front would say.
        processing_seconds: From upload (X-ray) or compute (CT) to the result.
        stability: Whether a CT series is computed without being asked, once nothing was added for
            ``stability_seconds``.
        stability_seconds: That quiet time; not stated anywhere.
        recompute: What asking for a recompute does.
        counts: What ``NumberOfSeriesRelatedInstances`` counts.
        message_keys: How the entries of ``messages`` are named.
        reject_unsupported_uploads: Whether an upload of nothing but unsupported images is answered 400 at once (the
            OpenAPI names "use case not implemented" among the reasons) instead of taken and answered 400 at results.
        url_seconds: How long a pre-signed URL is good for; not stated anywhere.
        presigned: True: file URLs are pre-signed and refuse our Authorization header. False: they are plain and require
            it.
        url_host: Host name in file URLs (the port stays); None takes that of the request.
        abnormal_share: Share of resources, 0 to 1, with findings where no plan says what is found.
        seed: Varies which resources those are.
        keep_received: Whether files are kept as received; otherwise only their headers, and pictures are drawn on a
            blank.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    storage: Path | None = None
    token: str = Field(default_factory=lambda: secrets.token_hex(20), min_length=1)
    source: str = Field(default_factory=lambda: f"personal-user-{secrets.token_hex(6)}", min_length=1)
    require_user_agent: bool = True
    answers: Answers = Answers.CURRENT
    max_request_bytes: int = Field(default=100_000_000, gt=0)
    processing_seconds: float = Field(default=5.0, ge=0)
    stability: bool = False
    stability_seconds: float = Field(default=20.0, ge=0)
    recompute: Recompute = Recompute.NEW
    counts: Counting = Counting.HELD
    message_keys: MessageKeys = MessageKeys.FORM
    reject_unsupported_uploads: bool = False
    url_seconds: float = Field(default=300.0, gt=0)
    presigned: bool = True
    url_host: str | None = None
    abnormal_share: float = Field(default=0.3, ge=0, le=1)
    seed: str = ""
    keep_received: bool = True


FIXED_AT_START = frozenset({"host", "port", "storage"})
"""Settings that a running emulator cannot change."""
