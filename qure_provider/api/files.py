"""The files that a result offers: which kinds there are, and which of the values are addresses at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

FILE_KINDS: Mapping[str, str] = {
    "sc": "secondary capture",
    "sc_full_png": "secondary capture as picture",
    "sc_png": "secondary capture as picture",
    "sc_thumbnail": "secondary capture, preview",
    "sc_dicom_thumbnail": "secondary capture, preview",
    "sc_key_slices": "slices with a finding",
    "original": "the service's lossy copy of the source image",
    "original_thumbnail": "the service's copy of the source image, preview",
    "report_pdf": "report as PDF",
    "report_dcm": "report as DICOM Encapsulated PDF",
    "report_sr": "report as DICOM structured report",
    "reports": "report",
    "pdf": "report as PDF",
    "encapsulated_pdf": "report as DICOM Encapsulated PDF",
    "sr": "DICOM structured report",
    "seg": "segmentation masks",
    "gsps": "DICOM grayscale softcopy presentation state",
    "json": "machine-readable result",
    "pr": "progression report, where there were prior studies; not a presentation state",
    "hl7": "HL7 report",
}
"""What the kinds of files are, for a reader (OpenAPI, results; documentation.qure.ai, Fetching Results).

Which of them come depends on the account, others may, and the format behind one is told by its content alone.
"""

_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PRINTABLE = re.compile(r"[!-~]+")


def read_files(value: Any) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Take the addresses out of an answer's ``files``.

    Args:
        value: What stands under ``files``: kind to a list of URLs, or to a single URL (legacy format).

    Returns:
        Kind to its http and https URLs, as sent and in order, kinds without any left out; and what was passed over, in
        fixed words.
    """
    if value is None:
        return {}, ()
    if not isinstance(value, dict):
        return {}, ("files not read: not an object",)
    files: dict[str, tuple[str, ...]] = {}
    warnings: dict[str, None] = {}
    for kind, sent in value.items():
        if not _KIND.fullmatch(kind):
            warnings["files passed over: not a name of a kind"] = None
            continue
        listed = [sent] if isinstance(sent, str) else [] if sent is None else sent
        if not isinstance(listed, list):
            warnings["files passed over: not a list of addresses"] = None
            continue
        urls = tuple(url for url in listed if _is_address(url))
        if len(urls) < len(listed):
            warnings["files passed over: not an http or https address"] = None
        if urls:
            files[kind] = urls
    return files, tuple(warnings)


def _is_address(value: Any) -> bool:
    if not isinstance(value, str) or not _PRINTABLE.fullmatch(value):
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
