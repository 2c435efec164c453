"""The files of a result: which there are, and what is in them; made when first asked for."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qure_provider.emulator.findings import SIMULATED
from qure_provider.emulator.header import QCT
from qure_provider.emulator.links import Target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from qure_provider.emulator.findings import Findings

_XRAY = {
    "sc": 2,
    "sc_full_png": 1,
    "sc_thumbnail": 1,
    "sc_dicom_thumbnail": 1,
    "original_thumbnail": 1,
    "original": 1,
    "report_pdf": 1,
    "report_dcm": 1,
    "report_sr": 1,
}
_QCT = {
    "sc": 1,
    "pdf": 1,
    "sr": 1,
    "sc_key_slices": 2,
    "seg": 1,
    "gsps": 1,
    "json": 1,
    "hl7": 1,
    "encapsulated_pdf": 1,
}
_OLDER = {"reports": 1, "sc_key_slices": 2, "sc": 1, "gsps": 1, "sc_png": 1}


@dataclass(frozen=True, slots=True)
class Job:
    """What files are made from.

    Attributes:
        uid: The resource's UID.
        usecase: Product.
        revision: Of the result.
        invalid: Whether the scan was found unusable.
        findings: What is found.
        impression: The conclusion.
        lines: The report.
        sources: The images as received, in order of arrival.
    """

    uid: str
    usecase: str
    revision: int
    invalid: bool
    findings: Findings
    impression: str
    lines: tuple[str, ...]
    sources: tuple[Path, ...]

    def target(self, kind: str, index: int) -> Target:
        """Name one of its files."""
        return Target(self.uid, self.revision, kind, index)

    @property
    def key(self) -> str:
        """Differs wherever any of it differs."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:24]


class Assets:
    """Makes and keeps files.

    Args:
        root: Folder to keep them in.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()

    def offered(self, job: Job, *, older: bool) -> dict[str, int]:
        """Say which files a result has.

        Args:
            job: The result.
            older: Whether the kinds are those of the older documentation.

        Returns:
            Kind to how many.
        """
        if older:
            return dict(_OLDER)
        return dict(_QCT if job.usecase == QCT else _XRAY)

    def content(self, job: Job, kind: str, index: int, attributes: Mapping[str, str | None]) -> bytes:
        """Give one file.

        Args:
            job: The result.
            kind: Kind of file.
            index: Which of that kind, from 0.
            attributes: Put into it, if it is DICOM; None removes.

        Returns:
            Its bytes.
        """
        return json.dumps({"simulated": SIMULATED, "kind": kind, "index": index, "report": list(job.lines)}).encode()
