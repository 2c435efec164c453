"""What the PACS may export."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from chaos.place import Place, expect
from chaos.scenario import scenario
from qure_provider.emulator.settings import Recompute
from tests.integration.pipeline.pipeline_kit import slices

EXPORT = "The export"


@scenario(
    EXPORT,
    "a study is exported again with two more images",
    "it is computed again, and the new result takes the old one's place everywhere",
)
def two_more_images(place: Place) -> None:
    head, more = _growing_head(place)
    place.night()
    place.must_be_whole(1)
    _export(place, more)
    place.night()
    place.must_be_whole(1)
    expect(place.rows()[head].revision == 2, "it is no new revision")
    expect(
        [message["OBR"][3] for message in place.ris.messages].count(place.ris.messages[0]["OBR"][3]) == 2, "no update"
    )


@scenario(
    EXPORT,
    "a study is exported again with two more images, and the service answers with the old result",
    "the old result is held as one that may predate late images, and does not go out as the new",
)
def old_result_for_more_images(place: Place) -> None:
    place.control.configure(recompute=Recompute.IGNORED.value)
    _, more = _growing_head(place)
    place.night()
    _export(place, more)
    place.night()
    expect("may predate late images" in place.red, f"the run does not say so: {place.red}")
    expect(place.owed("ris") == {"delivered": 1, "held": 1}, f"deliveries to the RIS: {place.owed('ris')}")
    expect(len(place.ris.messages) == 1, "the old result went out again")
    place.control.configure(recompute=Recompute.NEW.value)


@scenario(EXPORT, "objects of one study disagree about the patient", "none of them is sent, and the run says so")
def one_study_of_two_patients(place: Place) -> None:
    place.usual()
    (film,) = place.xray("theirs", **place.admit(4))
    place.xray("whose", **place.admit(5), StudyInstanceUID=film.StudyInstanceUID)
    place.night()
    place.must_be_whole(but="disagree about the patient")
    expect(place.summary()["counts"]["quarantined"] == 2, "they are not quarantined")


@scenario(EXPORT, "the same study under two accession numbers", "none of it is sent, and the run says so")
def two_accession_numbers(place: Place) -> None:
    place.usual()
    patient = place.admit(4)
    (film,) = place.xray("first", **patient)
    place.xray("again", **{**patient, "AccessionNumber": "SIM-OTHER"}, StudyInstanceUID=film.StudyInstanceUID)
    place.night()
    place.must_be_whole(but="the accession number")
    expect(place.summary()["counts"]["quarantined"] == 2, "they are not quarantined")


@scenario(EXPORT, "one UID with two different contents", "neither is sent, and the run says so")
def one_uid_twice(place: Place) -> None:
    place.usual()
    (film,) = place.xray("one", **place.admit(4))
    film.Rows, film.PixelData = 16, film.PixelData[: len(film.PixelData) // 2]
    place.put("other.dcm", film)
    place.night()
    place.must_be_whole(but="different content")
    expect(place.summary()["counts"]["quarantined"] == 2, "they are not quarantined")


@scenario(
    EXPORT,
    "a file is half-written and a series still arrives when the night is read",
    "the half is quarantined; the next night sends what was missing, as a new revision",
)
def still_arriving(place: Place) -> None:
    (film,) = place.xray("film", **place.admit(1))
    whole = (place.export / "film/0.dcm").read_bytes()
    (place.export / "film/0.dcm").write_bytes(whole[: len(whole) // 2])
    head, more = _growing_head(place)
    place.night()
    expect(place.summary()["counts"]["quarantined"] == 1, "the half is not quarantined")
    place.sources.clear()  # the half is no more
    (place.export / "film/0.dcm").write_bytes(whole)
    _export(place, more)
    place.night()
    place.must_be_whole(2)
    expect(set(place.rows()) == {film.SOPInstanceUID, head}, "other resources than were exported")


@scenario(EXPORT, "files vanish between the plan and the upload", "they are named; once there again, they are sent")
def files_vanish(place: Place) -> None:
    place.usual()
    place.begin()
    batches = place.planned()
    hidden = place.export.with_name("hidden")
    place.export.rename(hidden)
    for batch in batches or ():
        place.process_batch(batch)
    place.end()
    expect(place.outcomes() == {"not uploaded": 4}, f"outcomes are {place.outcomes()}")
    expect("not uploaded" in place.red, "the run does not name them")
    hidden.rename(place.export)
    place.night()
    place.must_be_whole()


@scenario(
    EXPORT,
    "a file and a folder may not be read",
    "neither is passed over in silence; once they may be read, they are sent",
)
def permission_denied(place: Place) -> None:
    place.usual()
    file, folder = place.export / "film/0.dcm", place.export / "chest"
    place.note_sources()
    with _without_override():
        file.chmod(0)
        folder.chmod(0)
        place.night(look=False)
        file.chmod(0o644)
        folder.chmod(0o755)
    reasons = place.summary()["counts"]["reasons"]
    for what in ("permission denied", "folder that cannot be listed"):
        expect(reasons.get(f"quarantined: {what}") == 1, f"the summary does not say '{what}': {reasons}")
    place.night()
    place.must_be_whole()


@scenario(EXPORT, "the night is empty, or its folder is missing", "the run is red and says so; nothing is sent")
def empty_night(place: Place) -> None:
    place.night()
    expect("empty" in place.red, f"the run does not say so: {place.red}")
    place.export.rmdir()
    place.night(look=False)
    expect("did not finish" in place.red, f"the run does not say so: {place.red}")
    expect(not place.control.requests(), "something was sent")
    place.export.mkdir()


@scenario(EXPORT, "the same night is exported twice over", "each file is sent once; the copies are counted")
def everything_twice(place: Place) -> None:
    place.usual()
    shutil.copytree(place.export / "head", place.export / "copy of head")
    shutil.copytree(place.export / "film", place.export / "copy of film")
    place.night()
    place.must_be_whole()
    expect(place.summary()["counts"]["duplicate"] == 11, "the copies are not counted")


def _growing_head(place: Place) -> tuple[str, list[object]]:
    """Export all but the last two slices of a head; returns its UID and these two.

    When these come the whole series is sent again: what becomes of slices after a computation is not stated anywhere.
    """
    place.resent = 12
    images = slices(14, **place.admit(3))
    _export(place, images[:-2])
    return str(images[0].SeriesInstanceUID), images[-2:]


def _export(place: Place, images: list[object]) -> None:
    for each in images:
        place.put(f"head/{each.InstanceNumber}.dcm", each)  # type: ignore[attr-defined]


_CAPABILITIES_V3 = 0x20080522
_MAY_READ_ANYTHING = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@contextmanager
def _without_override() -> Iterator[None]:
    """Let this thread, and those that it starts, obey file modes though it is root's."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    held = (ctypes.c_uint32 * 6)()
    _capabilities(libc.capget(header, held))
    less = (ctypes.c_uint32 * 6)(held[0] & ~_MAY_READ_ANYTHING, *held[1:])
    _capabilities(libc.capset(header, less))
    try:
        yield
    finally:
        _capabilities(libc.capset(header, held))


def _capabilities(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), "the process's capabilities cannot be changed")
