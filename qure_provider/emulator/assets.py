"""The files of a result: which there are, and what is in them; made when first asked for, and kept."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from qure_provider.emulator.findings import SIMULATED
from qure_provider.emulator.header import QCT, XRAY_PRODUCTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from PIL import Image
    from pydicom.dataset import Dataset

    from qure_provider.emulator.findings import Findings
    from qure_provider.emulator.header import Header

_CAPTURES = 3
_SLICES = 5
_LOCKS = 64
_NEEDS_GEOMETRY = frozenset({"seg"})
_NEEDS_PLAIN = frozenset({"seg", "gsps"})


def offered(usecase: str, header: Header, images: int, *, older: bool) -> dict[str, int]:
    """Say which files a result has, by the lists of the documentation.

    An X-ray has two captures, with and without the findings beside it, as was seen of the on-premises service. What the
    source cannot give is left out: a segmentation of slices whose place is not known, say. Progression reports (``pr``)
    are offered only by plan: they need earlier studies.

    Args:
        usecase: Product.
        header: Of an image of the resource.
        images: How many the result was computed from.
        older: Whether the kinds are those of the older documentation.

    Returns:
        Kind to how many.
    """
    slices = min(images, _CAPTURES)
    if older:
        counts = {"reports": 1, "sc_key_slices": slices, "sc": 1, "gsps": 1, "sc_png": 1}
    elif usecase == QCT:
        counts = {
            "sc": 1,
            "pdf": 1,
            "sr": 1,
            "sc_key_slices": slices,
            "seg": 1,
            "gsps": 1,
            "json": 1,
            "hl7": 1,
            "encapsulated_pdf": 1,
        }
    else:
        counts = {
            "sc": 2 if usecase in XRAY_PRODUCTS else slices,
            "sc_full_png": 1,
            "sc_thumbnail": 1,
            "sc_dicom_thumbnail": 1,
            "original_thumbnail": 1,
            "original": 1,
            "report_pdf": 1,
            "report_dcm": 1,
            "report_sr": 1,
        }
    return {
        kind: count
        for kind, count in counts.items()
        if not (kind in _NEEDS_PLAIN and not header.is_plain)
        and not (kind in _NEEDS_GEOMETRY and not header.has_geometry)
    }


@dataclass(frozen=True, slots=True)
class Job:
    """What files are made from.

    Attributes:
        uid: The resource's UID.
        usecase: Product.
        revision: Of the result.
        made_at: When it was made, seconds since the epoch.
        findings: What is found.
        impression: The conclusion.
        lines: The report.
        sources: The images as received, in order of their InstanceNumber.
    """

    uid: str
    usecase: str
    revision: int
    made_at: float
    findings: Findings
    impression: str
    lines: tuple[str, ...]
    sources: tuple[Path, ...]

    @property
    def key(self) -> str:
        """Differs wherever any of it differs."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:24]

    def spread(self, index: int, count: int) -> Path:
        """One of some sources spread evenly over the series.

        Args:
            index: Which, from 0.
            count: Of how many.

        Returns:
            Its path.
        """
        return self.sources[len(self.sources) * (2 * index + 1) // (2 * count) % len(self.sources)]


class Assets:
    """Makes and keeps files.

    Args:
        root: Folder to keep them in.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

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
        from qure_provider.emulator.objects import altered

        return altered(self._kept(job, kind, index), attributes)

    def _kept(self, job: Job, kind: str, index: int) -> bytes:
        name = f"{job.key}/{hashlib.sha256(kind.encode()).hexdigest()[:8]}-{index}"
        path = self._root / name[:2] / name
        with self._locks[hash(name) % _LOCKS]:
            if not path.exists():
                content = _make(job, kind, index)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                return content
            return path.read_bytes()


@lru_cache(maxsize=64)
def _header(path: Path) -> Dataset:
    import pydicom

    return pydicom.dcmread(path, stop_before_pixels=True)


@lru_cache(maxsize=16)
def _capture(job: Job, path: Path, *, with_report: bool) -> Image.Image:
    from qure_provider.emulator import pictures

    return pictures.capture(path, job.findings.sentences, (job.impression, *job.lines) if with_report else None)


@lru_cache(maxsize=16)
def _pdf(job: Job, path: Path) -> bytes:
    from qure_provider.emulator import documents

    return documents.pdf(_header(path), f"Simulated {job.usecase} report", job.lines, job.impression)


def _make(job: Job, kind: str, index: int) -> bytes:
    from qure_provider.emulator import documents, pictures
    from qure_provider.emulator.objects import Maker

    is_xray = job.usecase in XRAY_PRODUCTS
    path = job.spread(0, 1)
    if kind == "sc_key_slices" or (kind == "sc" and not is_xray):
        path = job.spread(index, min(len(job.sources), _CAPTURES))
    maker = Maker(_header(path), job.uid, job.revision, job.made_at)

    def capture() -> Image.Image:
        return _capture(job, path, with_report=kind != "sc_key_slices" and index != 1)

    def pdf() -> bytes:
        return _pdf(job, path)

    def original() -> bytes:
        import pydicom

        return maker.original(pydicom.dcmread(path), kind, index)

    def segmentation() -> bytes:
        count = min(len(job.sources), _SLICES)
        return maker.segmentation([_header(job.spread(number, count)) for number in range(count)], job.findings, kind)

    makers: dict[str, Callable[[], bytes]] = {
        "sc": lambda: maker.capture(capture(), kind, index),
        "sc_key_slices": lambda: maker.capture(capture(), kind, index),
        "sc_full_png": lambda: pictures.png(capture()),
        "sc_png": lambda: pictures.png(capture()),
        "sc_thumbnail": lambda: pictures.png(pictures.thumbnail(capture())),
        "sc_dicom_thumbnail": lambda: pictures.png(pictures.thumbnail(capture(), 256)),
        "original_thumbnail": lambda: pictures.png(pictures.thumbnail(pictures.preview(path))),
        "original": original,
        "report_pdf": pdf,
        "pdf": pdf,
        "pr": pdf,
        "reports": pdf,
        "report_dcm": lambda: maker.encapsulated_pdf(pdf(), kind, index),
        "encapsulated_pdf": lambda: maker.encapsulated_pdf(pdf(), kind, index),
        "report_sr": lambda: maker.text_report(job.lines, job.impression, kind, index),
        "sr": lambda: maker.text_report(job.lines, job.impression, kind, index),
        "gsps": lambda: maker.presentation_state(job.findings, kind, index),
        "seg": segmentation,
        "json": lambda: documents.machine_readable(_header(path), job.findings, job.revision, len(job.sources)),
        "hl7": lambda: documents.hl7(_header(path), job.made_at, job.lines, job.impression),
    }
    # A plan may name any kind.
    return makers.get(kind, lambda: f"{SIMULATED}: {kind}\n".encode())()
