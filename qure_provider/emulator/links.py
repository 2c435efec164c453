"""File URLs: opaque, signed, and good for a while."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from enum import StrEnum

_SIGNATURE = 16


class Refusal(StrEnum):
    """Why a URL is not good, in the error codes that S3 uses."""

    UNSIGNED = "SignatureDoesNotMatch"
    EXPIRED = "AccessDenied"


@dataclass(frozen=True, slots=True)
class Target:
    """What a file URL is for.

    Attributes:
        uid: The resource's UID.
        revision: Of its result.
        kind: Kind of file.
        index: Which of that kind, from 0.
    """

    uid: str
    revision: int
    kind: str
    index: int


class Signer:
    """Makes and checks the opaque part of file URLs; its key lives as long as it does."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def sign(self, target: Target, expires: int) -> str:
        """Make the opaque part of a URL.

        Args:
            target: What it is for.
            expires: Until when it is good, seconds since the epoch.

        Returns:
            The opaque part.
        """
        content = json.dumps([target.uid, target.revision, target.kind, target.index, expires]).encode()
        return base64.urlsafe_b64encode(self._digest(content) + content).decode().rstrip("=")

    def read(self, opaque: str, expires: str, now: float) -> Target | Refusal:
        """Check a URL.

        Args:
            opaque: Its opaque part.
            expires: Its ``expires`` parameter.
            now: Seconds since the epoch.

        Returns:
            What it is for, or why it is refused.
        """
        try:
            signed = base64.urlsafe_b64decode(opaque + "=" * (-len(opaque) % 4))
        except ValueError:
            return Refusal.UNSIGNED
        digest, content = signed[:_SIGNATURE], signed[_SIGNATURE:]
        if not hmac.compare_digest(digest, self._digest(content)):
            return Refusal.UNSIGNED
        uid, revision, kind, index, until = json.loads(content)
        if expires != str(until):
            return Refusal.UNSIGNED
        return Target(uid, revision, kind, index) if now < until else Refusal.EXPIRED

    def _digest(self, content: bytes) -> bytes:
        return hmac.new(self._key, content, hashlib.sha256).digest()[:_SIGNATURE]
