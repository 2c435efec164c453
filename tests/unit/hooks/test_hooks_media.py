from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from qure_provider.hooks.media import HEAD, Media, sniff


@pytest.mark.parametrize(
    ("head", "media", "extension"),
    [
        (b"\0" * 128 + b"DICM\x02\0", Media.DICOM, ".dcm"),
        (b"%PDF-1.4\n", Media.PDF, ".pdf"),
        (b"\x89PNG\r\n\x1a\n\0\0", Media.PNG, ".png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", Media.JPEG, ".jpg"),
        (b'{"nodules": []}', Media.JSON, ".json"),
        (b'\xef\xbb\xbf \r\n[{"a": 1}]', Media.JSON, ".json"),
        (b"MSH|^~\\&|QURE|", Media.HL7, ".hl7"),
        (b"\x0bMSH|^~\\&|QURE|", Media.HL7, ".hl7"),
        (b"FHS|^~\\&|", Media.HL7, ".hl7"),
        (b"\n<!DOCTYPE HTML><html>", Media.HTML, ".html"),
        (b"<html lang=en>", Media.HTML, ".html"),
        (b"", Media.UNKNOWN, ".bin"),
        (b"\0" * 200, Media.UNKNOWN, ".bin"),
        (b"PK\x03\x04", Media.UNKNOWN, ".bin"),
        (b"DICM", Media.UNKNOWN, ".bin"),
        (b"MSHX", Media.UNKNOWN, ".bin"),
    ],
)
def test_content_tells_the_kind(head, media, extension):
    assert sniff(head) is media
    assert media.extension == extension


def test_a_real_dicom_file_is_known_by_its_head():
    with Path(get_testdata_file("CT_small.dcm")).open("rb") as file:
        assert sniff(file.read(HEAD)) is Media.DICOM
