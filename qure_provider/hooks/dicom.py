"""The hook to an archive that takes DICOM objects over DIMSE (C-STORE)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pydicom
from airflow.sdk import BaseHook
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from qure_provider.dicom.model import Identity
from qure_provider.dicom.objects import text
from qure_provider.dicom.quiet import quiet_pydicom
from qure_provider.dicom.verify import identity_of
from qure_provider.hooks.association import (
    MAX_CONTEXTS,
    AssociationLostError,
    Context,
    NothingAcceptedError,
    associated,
)
from qure_provider.hooks.connection import verdict_of
from qure_provider.hooks.dicom_connection import DicomConnection
from qure_provider.hooks.receiver import (
    ReceiverError,
    ReceiverSettingsError,
    ReceiverUnavailableError,
)
from qure_provider.hooks.storing import OutgoingObject, StoreKind, StoreStatus, error_name, meaning, one_patient

log = logging.getLogger(__name__)

_VERIFICATION = UID("1.2.840.10008.1.1")
_STUDY_ROOT_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")
_TEST_TIMEOUT = 3.0
"""Seconds for each of the three steps of a test, which runs inside Airflow's API server."""
_MAX_LOSSES = 3
"""How often a lost association is opened anew before the rest is left for later."""
_MESSAGE_IDS = 0xFFFF
_KINDS = {
    SecondaryCaptureImageStorage: "secondary captures",
    BasicTextSRStorage: "text reports (SR)",
    EncapsulatedPDFStorage: "PDFs",
    GrayscaleSoftcopyPresentationStateStorage: "presentation states",
    SegmentationStorage: "segmentations",
    KeyObjectSelectionDocumentStorage: "key object selections",
}
"""What results are made of."""
_ANSWERS = frozenset({0xFF00, 0xFF01})
_CANNOT_ANSWER = frozenset({0x0122, 0xA900})


_Ask = Callable[..., list[Dataset]]


class DicomHook(BaseHook):
    """Stores DICOM objects at an archive, and asks it what it has.

    Args:
        dicom_conn_id: The Airflow connection, of type ``dicom``.
    """

    conn_name_attr = "dicom_conn_id"
    default_conn_name = "dicom_default"
    conn_type = "dicom"
    hook_name = "DICOM (C-STORE)"

    def __init__(self, dicom_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.dicom_conn_id = dicom_conn_id

    @cached_property
    def connection(self) -> DicomConnection:
        """The settings of its connection.

        Raises:
            ReceiverSettingsError: A field is missing or wrong; the message names it.
        """
        return DicomConnection.from_airflow(self.get_connection(self.dicom_conn_id))

    def store(self, paths: Sequence[Path]) -> tuple[StoreStatus, ...]:
        """Send objects, a few at once, each streamed from its file.

        Each is sent as it is, in its own transfer syntax. An archive that only takes Implicit VR Little Endian is given
        that, where nothing is compressed; pixels are never compressed or decompressed. Where an association is lost,
        the object that was under way is in doubt, and the others go through a new one.

        Args:
            paths: DICOM files whose header and object agree about SOP class and instance.

        Returns:
            What became of each, in their order.

        Raises:
            ReceiverSettingsError: The archive does not want to know us, or TLS cannot be agreed on. Nothing was sent.
            ReceiverUnavailableError: It cannot be reached, has no room now, or a file cannot be read. Nothing was sent.
            ReceiverRefusedError: A file is no DICOM object. Nothing was sent.
        """
        objects = [OutgoingObject.read(path) for path in paths]
        sending = _Sending(self.connection, objects)
        for group in _grouped(objects):
            sending.send(group)
        return sending.statuses()

    def find_study(self, study_instance_uid: str) -> Identity | None:
        """Ask whether a study exists there, and whose it is now (C-FIND, Study Root).

        Args:
            study_instance_uid: Which.

        Returns:
            Whose it is, as far as the archive says; None where it has no such study.

        Raises:
            ReceiverSettingsError: The archive does not answer questions from us, or does not want to know us.
            ReceiverUnavailableError: It cannot be asked now.
            ReceiverRefusedError: It has the study under more than one patient ID.
        """
        with self._asking() as ask:
            answers = ask(
                "STUDY",
                {"StudyInstanceUID": study_instance_uid},
                *("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
            )
            found = [identity_of(answer) for answer in answers]
        return one_patient(found, study_instance_uid)

    def find_instances(self, study_instance_uid: str, series: Sequence[str] = ()) -> frozenset[str]:
        """Ask which instances of a study are there (C-FIND at image level): the proof that they arrived.

        Args:
            study_instance_uid: Of which study.
            series: SeriesInstanceUIDs to ask about; none for all that the archive has of the study.

        Returns:
            SOPInstanceUIDs.

        Raises:
            ReceiverSettingsError: The archive does not answer questions from us, or does not want to know us.
            ReceiverUnavailableError: It cannot be asked now.
        """
        study = {"StudyInstanceUID": study_instance_uid}
        found: set[str] = set()
        with self._asking() as ask:
            if not series:
                series = [text(answer, "SeriesInstanceUID") for answer in ask("SERIES", study, "SeriesInstanceUID")]
            for uid in filter(None, series):
                answers = ask("IMAGE", study | {"SeriesInstanceUID": uid}, "SOPInstanceUID")
                found.update(text(answer, "SOPInstanceUID") for answer in answers)
        return frozenset(found - {""})

    def echo(self) -> tuple[str, ...]:
        """Ask the archive whether it is there (C-ECHO), and which kinds of a result's objects it takes.

        Returns:
            The kinds that it does not take, in words.

        Raises:
            ReceiverSettingsError: The archive does not want to know us, or TLS cannot be agreed on.
            ReceiverUnavailableError: It cannot be reached, or does not answer.
        """
        return _echo(self.connection)

    def test_connection(self) -> tuple[bool, str]:
        """Say whether the archive can be reached and takes what results are made of, within 10 seconds.

        Returns:
            Whether all is well, and what is or what to set.
        """
        try:
            not_taken = _echo(
                replace(
                    self.connection,
                    connect_timeout=_TEST_TIMEOUT,
                    association_timeout=_TEST_TIMEOUT,
                    response_timeout=_TEST_TIMEOUT,
                )
            )
        except ReceiverError as error:
            return verdict_of(error, self.dicom_conn_id)
        if len(not_taken) == len(_KINDS):
            return False, "The archive answers C-ECHO, but takes no objects from us. Let our AE title store there."
        if not_taken:
            return True, f"The archive answers C-ECHO. It takes no {', '.join(not_taken)}: those would be refused."
        return True, "The archive answers C-ECHO, and takes every kind of object that results are made of."

    @contextmanager
    def _asking(self) -> Iterator[_Ask]:
        try:
            with (
                quiet_pydicom(),
                associated(self.connection, [(str(_STUDY_ROOT_FIND), str(ImplicitVRLittleEndian))]) as association,
            ):
                yield partial(_asked, association)
        except NothingAcceptedError:
            raise ReceiverSettingsError("The archive does not answer questions (C-FIND) from us.") from None


def _context(outgoing: OutgoingObject) -> Context:
    return outgoing.sop_class_uid, outgoing.transfer_syntax_uid


def _plain_context(outgoing: OutgoingObject) -> Context | None:
    """What it could be sent as instead: Implicit VR Little Endian, unless its pixels would have to be altered."""
    syntax = UID(outgoing.transfer_syntax_uid)
    is_known = syntax.is_transfer_syntax and not syntax.is_private
    if not is_known or syntax.is_compressed or not syntax.is_little_endian:
        return None
    return outgoing.sop_class_uid, str(ImplicitVRLittleEndian)


def _contexts(outgoing: OutgoingObject) -> list[Context]:
    return list(dict.fromkeys(filter(None, (_context(outgoing), _plain_context(outgoing)))))


def _grouped(objects: Sequence[OutgoingObject]) -> Iterator[list[int]]:
    """Indexes of objects that can go through one association."""
    group: list[int] = []
    contexts: set[Context] = set()
    for index, each in enumerate(objects):
        if len(contexts.union(_contexts(each))) > MAX_CONTEXTS:
            yield group
            group, contexts = [], set()
        group.append(index)
        contexts.update(_contexts(each))
    if group:
        yield group


class _Sending:
    """Objects on their way to one archive, and what became of each."""

    def __init__(self, connection: DicomConnection, objects: Sequence[OutgoingObject]) -> None:
        self._connection = connection
        self._objects = objects
        self._statuses: dict[int, StoreStatus] = {}
        self._errors: list[ReceiverError] = []

    def send(self, group: Sequence[int]) -> None:
        """Send some objects through associations that propose the same."""
        waiting = deque(group)
        contexts = list(dict.fromkeys(context for index in group for context in _contexts(self._objects[index])))
        workers = min(self._connection.parallel_associations, len(group))
        with ThreadPoolExecutor(workers, thread_name_prefix="dicom-store") as pool:
            for future in [pool.submit(self._work, waiting, contexts) for _ in range(workers)]:
                future.result()

    def statuses(self) -> tuple[StoreStatus, ...]:
        """What became of each object.

        Raises:
            ReceiverError: What kept all of them from being sent.
        """
        if self._errors and not self._statuses:
            raise self._errors[0]
        reason = str(self._errors[0]) if self._errors else ""
        return tuple(
            self._statuses.get(index) or StoreStatus(each.sop_instance_uid, StoreKind.UNAVAILABLE, None, reason)
            for index, each in enumerate(self._objects)
        )

    def _work(self, waiting: deque[int], contexts: Sequence[Context]) -> None:
        for _ in range(_MAX_LOSSES):
            if not waiting:
                return
            try:
                with associated(self._connection, contexts) as association:
                    self._send_through(association, waiting)
            except AssociationLostError:
                continue
            except NothingAcceptedError:
                self._refuse_all(waiting)
                return
            except ReceiverError as error:
                self._errors.append(error)
                return
        if waiting:
            self._errors.append(ReceiverUnavailableError("The archive broke off again and again."))

    def _send_through(self, association: Any, waiting: deque[int]) -> None:
        accepted = {(str(each.abstract_syntax), str(each.transfer_syntax[0])) for each in association.accepted_contexts}
        for message_id in cycle(range(1, _MESSAGE_IDS + 1)):
            if not association.is_established:
                return
            try:
                index = waiting.popleft()
            except IndexError:
                return
            outgoing = self._objects[index]
            if _context(outgoing) in accepted:
                self._statuses[index] = _stored(association, outgoing, outgoing.path, message_id)
            elif _plain_context(outgoing) in accepted:
                with quiet_pydicom():
                    self._statuses[index] = _stored(association, outgoing, pydicom.dcmread(outgoing.path), message_id)
            else:
                self._statuses[index] = _not_taken(outgoing)
                continue
            if self._statuses[index].status is None:
                raise AssociationLostError

    def _refuse_all(self, waiting: deque[int]) -> None:
        while waiting:
            index = waiting.popleft()
            self._statuses[index] = _not_taken(self._objects[index])


def _stored(association: Any, outgoing: OutgoingObject, content: Path | Dataset, message_id: int) -> StoreStatus:
    def status(kind: StoreKind, reason: str, answered: int | None = None) -> StoreStatus:
        return StoreStatus(outgoing.sop_instance_uid, kind, answered, reason)

    try:
        answer = association.send_c_store(content, msg_id=message_id, priority=0)
    except RuntimeError:  # the association ended between two objects
        return status(StoreKind.UNAVAILABLE, "the association was lost before it was sent")
    except OSError as error:
        return status(StoreKind.UNAVAILABLE, f"its file could not be read ({error_name(error)})")
    except AssociationLostError:
        answer = Dataset()
    if "Status" not in answer:
        return status(StoreKind.IN_DOUBT, "no answer came: the association was lost")
    kind, reason = meaning(answer.Status)
    return status(kind, reason, answer.Status)


def _not_taken(outgoing: OutgoingObject) -> StoreStatus:
    reason = "the archive does not take this kind of object in this transfer syntax"
    return StoreStatus(outgoing.sop_instance_uid, StoreKind.REFUSED, None, reason)


def _asked(association: Any, level: str, keys: Mapping[str, str], *returned: str) -> list[Dataset]:
    question = Dataset()
    question.QueryRetrieveLevel = level
    for keyword, value in {**dict.fromkeys(returned, ""), **keys}.items():
        setattr(question, keyword, value)
    # Archives that do not match by one of the keys answer with more than was asked for.
    return [
        answer
        for answer in _answers(association, question)
        if all(text(answer, keyword) in {"", value} for keyword, value in keys.items())
    ]


def _answers(association: Any, question: Dataset) -> Iterator[Dataset]:
    if not association.is_established:
        raise ReceiverUnavailableError("The archive broke off between two questions (C-FIND).")
    for status, answer in association.send_c_find(question, _STUDY_ROOT_FIND):
        if "Status" not in status:
            raise ReceiverUnavailableError("The archive did not answer a question (C-FIND), or broke off.")
        if status.Status in _CANNOT_ANSWER:
            raise ReceiverSettingsError(f"The archive cannot answer a question (C-FIND, {status.Status:04X}).")
        if status.Status not in _ANSWERS | {0}:
            raise ReceiverUnavailableError(f"The archive failed to answer a question (C-FIND, {status.Status:04X}).")
        if answer is not None:
            yield answer


def _echo(connection: DicomConnection) -> tuple[str, ...]:
    syntaxes = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    proposed = [(str(kind), str(syntax)) for kind in _KINDS for syntax in syntaxes]
    with associated(connection, [(str(_VERIFICATION), str(ImplicitVRLittleEndian)), *proposed]) as association:
        taken = {str(each.abstract_syntax) for each in association.accepted_contexts}
        if _VERIFICATION not in taken:
            raise ReceiverSettingsError("The archive takes an association from us, but answers no C-ECHO.")
        answer = association.send_c_echo()
        if answer.get("Status") != 0:
            raise ReceiverUnavailableError("The archive did not answer C-ECHO as it should.")
    return tuple(words for kind, words in _KINDS.items() if kind not in taken)
