"""What a file is, told by its content alone: the service sends neither names nor media types with its files."""

from __future__ import annotations

from enum import StrEnum

HEAD = 1024
"""Bytes of a file's beginning that are enough to tell."""


class Media(StrEnum):
    """The kinds of files that results are made of."""

    DICOM = "application/dicom"
    PDF = "application/pdf"
    PNG = "image/png"
    JPEG = "image/jpeg"
    JSON = "application/json"
    HL7 = "x-application/hl7-v2+er7"
    HTML = "text/html"
    UNKNOWN = "application/octet-stream"

    @property
    def extension(self) -> str:
        """The usual file name extension, with its dot."""
        return _EXTENSIONS[self]


_EXTENSIONS = {
    Media.DICOM: ".dcm",
    Media.PDF: ".pdf",
    Media.PNG: ".png",
    Media.JPEG: ".jpg",
    Media.JSON: ".json",
    Media.HL7: ".hl7",
    Media.HTML: ".html",
    Media.UNKNOWN: ".bin",
}

_SIGNATURES = {
    b"%PDF-": Media.PDF,
    b"\x89PNG\r\n\x1a\n": Media.PNG,
    b"\xff\xd8\xff": Media.JPEG,
}
_HL7_SEGMENTS = (b"MSH|", b"FHS|", b"BHS|")
_HTML_STARTS = (b"<!doctype html", b"<html", b"<head", b"<body")


def sniff(head: bytes) -> Media:
    """Tell what a file is.

    Args:
        head: Its first ``HEAD`` bytes, or all of it if it is shorter.

    Returns:
        The kind; ``UNKNOWN`` where nothing is certain.
    """
    if head[128:132] == b"DICM":
        return Media.DICOM
    for signature, media in _SIGNATURES.items():
        if head.startswith(signature):
            return media
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n\x0b")
    if text.startswith(_HL7_SEGMENTS):
        return Media.HL7
    if text.startswith((b"{", b"[")):
        return Media.JSON
    if text.lower().startswith(_HTML_STARTS):
        return Media.HTML
    return Media.UNKNOWN
