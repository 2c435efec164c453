"""What the hospital's own systems may do to us."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chaos.place import DESTINATIONS, Place, connect, expect
from chaos.scenario import scenario
from tests.integration.pipeline.pipeline_kit import Pager, image
from tests.support import hl7_receiver
from tests.support.dicom_archive import abort, match
from tests.support.fhir_server import Fault

RECEIVERS = "The receivers"
_REFUSED, _FULL, _STORED, _FAILED = 0x0122, 0xA700, 0x0000, 0xC000
_NOBODY = 1
"""A port at which nobody listens."""


@scenario(
    RECEIVERS,
    "the archive has the study under another patient",
    "with ask_first nothing is stored there, and what is held is named",
)
def archive_has_another_patient(place: Place) -> None:
    _, film, _ = place.usual()
    place.connect_archive(ask_first=True)
    there = [_header(source, "SIM-OTHER" if source.resource == film else source.patient_id) for source in place.noted()]
    place.archive.answers = match(*there)
    place.night()
    expect(place.owed("pacs") == {"delivered": 3, "held": 1}, f"deliveries to the archive: {place.owed('pacs')}")
    expect("held" in place.red, "the run does not name what is held")


@scenario(RECEIVERS, "the EHR does not know a patient", "no patient is made; the report is held until it knows them")
def unknown_to_the_ehr(place: Place) -> None:
    place.usual()
    place.xray("stranger", PatientID="SIM-9", PatientName="SIMULATED^0009", AccessionNumber="SIM-A9")
    place.night()
    expect(place.owed("ehr") == {"delivered": 3, "held": 1}, f"deliveries to the EHR: {place.owed('ehr')}")
    place.admit(9)
    place.redelivered(states="held")
    place.night()
    place.must_be_whole(5)


@scenario(
    RECEIVERS,
    "an urgent result cannot be delivered anywhere",
    "people are told at once of the result, and at the end that it did not arrive; all goes out later",
)
def nobody_takes_the_urgent_one(place: Place) -> None:
    place.usual()
    _all_gone(place)
    place.night()
    expect(len(Pager.told) > 1, f"people were told {len(Pager.told)} times")
    for destination in DESTINATIONS:
        expect(destination in place.red, f"the run does not name {destination}")
    _recovers(place)


@scenario(RECEIVERS, "alerts do not get through at first", "each is tried again until it does, and told once")
def alerts_that_fail(place: Place) -> None:
    place.usual()
    Pager.problems = [OSError("no network")] * 5
    place.night()
    expect(not Pager.problems, "not every failure struck")
    expect(len(Pager.told) == 1, f"people were told {len(Pager.told)} times")


@scenario(RECEIVERS, "the archive is down", "the others are served; the run says so; all goes out once it is back")
def archive_down(place: Place) -> None:
    place.usual()
    connect("pacs", "dicom", port=_NOBODY, called_ae_title="ARCHIVE", connect_timeout=1)
    place.night()
    expect(place.owed("ris") == {"delivered": 3}, f"deliveries to the RIS: {place.owed('ris')}")
    expect("Deliveries to pacs" in place.red, "the run does not name the archive")
    _recovers(place)


@scenario(RECEIVERS, "the archive refuses objects for good", "it is not asked again and again; the run names each")
def archive_refuses(place: Place) -> None:
    place.usual()
    place.archive.answer = lambda _event: _REFUSED
    place.night()
    expect(place.owed("pacs") == {"dead": 4}, f"deliveries to the archive: {place.owed('pacs')}")
    expect("dead" in place.red, "the run does not name them")
    place.archive.answer = lambda _event: _STORED
    place.redelivered(states="dead")
    place.night()
    place.must_be_whole()


@scenario(RECEIVERS, "the archive is full", "it is tried again later, and all is stored once")
def archive_full(place: Place) -> None:
    place.usual()
    place.archive.answer = lambda _event: _FULL
    place.night()
    expect("Deliveries to pacs" in place.red, "the run does not name the archive")
    _recovers(place)


@scenario(RECEIVERS, "the archive aborts in the middle of a result", "what it took is not stored under another name")
def archive_aborts(place: Place) -> None:
    place.usual()
    place.repeated = 10  # what came of two results before: an archive knows an object by its UID
    place.archive.answer = _in_turn([None, None, abort, None, abort])
    place.night()
    _recovers(place)


@scenario(
    RECEIVERS,
    "the archive stores an object and is gone before its answer",
    "it is in doubt; the archive is asked before anything is sent again",
)
def archive_stores_and_dies(place: Place) -> None:
    place.usual()

    def store_and_die(event: Any) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        place.archive.received.append(dataset)
        event.assoc.abort()
        return _FAILED

    place.archive.answer = _in_turn([None, None, None, store_and_die])
    place.night()
    _recovers(place)


@scenario(
    RECEIVERS,
    "the archive says that it stored an object, and has not",
    "with prove it is asked; without its word nothing counts as delivered",
)
def archive_loses_what_it_took(place: Place) -> None:
    place.usual()
    place.connect_archive(prove=True)
    place.archive.answers = lambda _identifier: match()(_identifier)
    place.night()
    expect("delivered" not in place.owed("pacs"), f"deliveries to the archive: {place.owed('pacs')}")
    expect("Deliveries to pacs" in place.red, "the run does not name the archive")
    _recovers(place)


@scenario(RECEIVERS, "the RIS rejects (AR) or fails (AE) a message", "it is named; it goes out once when told to")
def ris_rejects(place: Place) -> None:
    place.usual()
    place.repeated = 2
    place.ris.actions = [hl7_receiver.answer("AR"), hl7_receiver.answer("AE")]
    place.night()
    expect("Deliveries to ris" in place.red, "the run does not name the RIS")
    place.redelivered(states="dead")
    _recovers(place)


@scenario(
    RECEIVERS,
    "the RIS gives no acknowledgement, half of one, or another message's",
    "none counts as delivered; what is sent again has the same control id",
)
def ris_acknowledges_badly(place: Place) -> None:
    place.usual()
    place.repeated = 5
    place.ris.actions = [
        hl7_receiver.drop,
        hl7_receiver.half,
        hl7_receiver.answer("AA", control_id="OTHER"),
        hl7_receiver.raw(b"\x0bnonsense\x1c\r"),
        hl7_receiver.answer("XX"),
    ]
    place.night()
    expect(place.owed("ris").get("delivered", 0) == 0, f"deliveries to the RIS: {place.owed('ris')}")
    _recovers(place)
    controls = {message.control_id for message in place.ris.messages}
    expect(len(controls) == 3, f"{len(controls)} control ids for three reports")


@scenario(RECEIVERS, "the RIS is slow, and then silent", "slow is waited for; silent is in doubt and sent again")
def ris_slow(place: Place) -> None:
    place.usual()
    place.repeated = 1
    place.connect_ris(response_timeout=3)
    place.ris.actions = [hl7_receiver.late(1), hl7_receiver.silent(5)]
    place.night()
    _recovers(place)


@scenario(RECEIVERS, "the EHR fails, and loses its answers", "the report is looked for first, and made once")
def ehr_loses_answers(place: Place) -> None:
    place.usual()
    place.ehr.faults += [Fault("POST", ".*", status=500), Fault("POST", ".*", times=3)]
    place.night()
    _recovers(place)


def _all_gone(place: Place) -> None:
    connect("pacs", "dicom", port=_NOBODY, called_ae_title="ARCHIVE", connect_timeout=1)
    connect("ris", "mllp", port=_NOBODY, connect_timeout=1)
    connect("ehr", "fhir", host=f"http://127.0.0.1:{_NOBODY}/fhir/", connect_timeout=1)
    place.note_sources()


def _recovers(place: Place) -> None:
    """Every receiver is well again, and ``qure_redeliver`` runs."""
    place.archive.answer = lambda _event: _STORED
    place.archive.answers = lambda identifier: match(*place.archive.received)(identifier)
    place.ris.actions.clear()
    place.connect_receivers()
    place.redelivered()
    place.redelivered()
    place.night()
    place.must_be_whole()


def _in_turn(actions: Sequence[Callable[[Any], Any] | None]) -> Callable[[Any], int]:
    """Answers objects one after the other; None stores, as does all after the last."""
    left = list(actions)

    def answer(event: Any) -> int:
        action = left.pop(0) if left else None
        if action is None:
            return _STORED
        done = action(event)
        return _FAILED if done is None else int(done)

    return answer


def _header(source: Any, patient_id: str) -> Any:
    return image(
        StudyInstanceUID=source.study,
        PatientID=patient_id,
        PatientName=source.patient_name,
        AccessionNumber=source.accession,
    )
