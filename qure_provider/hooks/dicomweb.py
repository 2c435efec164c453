"""The hook to an archive that takes DICOM objects over DICOMweb (STOW-RS)."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from pydicom.dataset import Dataset

from qure_provider import connection_forms
from qure_provider.dicom.model import Identity
from qure_provider.dicom.objects import text
from qure_provider.dicom.quiet import quiet_pydicom
from qure_provider.dicom.verify import identity_of
from qure_provider.hooks.connection import Fields, verdict_of
from qure_provider.hooks.multipart import OutgoingFileError
from qure_provider.hooks.outgoing import OutgoingFile
from qure_provider.hooks.receiver import (
    ReceiverError,
    ReceiverRefusedError,
    ReceiverSettingsError,
    ReceiverUnavailableError,
)
from qure_provider.hooks.storing import OutgoingObject, StoreKind, StoreStatus, error_name, one_patient
from qure_provider.hooks.stow import part_size, read_answer, store_body
from qure_provider.hooks.web import (
    Answer,
    WebAirflowConnection,
    WebConnection,
    WebHook,
    WebSession,
    refusal,
    within_test_time,
)

MAX_REQUEST_BYTES = 100_000_000
"""Bytes of one store request, by default."""

DICOM_JSON = "application/dicom+json"
_PAGE = 100
_PROBE = "2.25.325870471983655127340891234005642179883"
"""A study that nobody has."""
_ANSWERED = frozenset({200, 202, 409})
_MAY_HAVE_STORED = frozenset({500, 502, 504})


@dataclass(frozen=True, slots=True)
class DicomWebConnection:
    """Where an archive is and how to talk to it over DICOMweb.

    Attributes:
        web: Where it is and how to talk to it.
        max_request_bytes: Bytes of one store request, at most; a larger object goes alone.
    """

    web: WebConnection
    max_request_bytes: int = MAX_REQUEST_BYTES

    @classmethod
    def from_airflow(cls, connection: WebAirflowConnection) -> DicomWebConnection:
        """Read an Airflow connection of type ``dicomweb``.

        Args:
            connection: What Airflow returned; see ``WebConnection``. ``extra`` also holds ``max_request_bytes``.

        Returns:
            The settings.

        Raises:
            ReceiverSettingsError: A field is missing or wrong; the message names it and says what to enter.
        """
        fields = Fields.of(connection, connection_forms.DICOMWEB, ReceiverSettingsError)
        expected = "the root of the archive's DICOMweb services, such as https://host/dicom-web"
        return cls(
            web=WebConnection.from_airflow(connection, fields, expected),
            max_request_bytes=fields.number(
                "max_request_bytes", MAX_REQUEST_BYTES, at_least=1000, at_most=100 * MAX_REQUEST_BYTES
            ),
        )


class DicomWebHook(WebHook):
    """Stores DICOM objects at an archive over DICOMweb, and asks it what it has.

    Args:
        dicomweb_conn_id: The Airflow connection, of type ``dicomweb``.
        operator: Class name of the operator, for the User-Agent.
    """

    conn_name_attr = "dicomweb_conn_id"
    default_conn_name = "dicomweb_default"
    conn_type = "dicomweb"
    hook_name = "DICOMweb (STOW-RS)"

    def __init__(self, dicomweb_conn_id: str = default_conn_name, *, operator: str = "") -> None:
        super().__init__(operator=operator)
        self.dicomweb_conn_id = dicomweb_conn_id

    @cached_property
    def connection(self) -> DicomWebConnection:
        """The settings of its connection.

        Raises:
            ReceiverSettingsError: A field is missing or wrong; the message names it.
        """
        return DicomWebConnection.from_airflow(self.get_connection(self.dicomweb_conn_id))

    @property
    def web(self) -> WebConnection:
        """Where it is, and who we are there."""
        return self.connection.web

    def stow(self, paths: Sequence[Path]) -> tuple[StoreStatus, ...]:
        """Store objects, as many in a request as fit, streamed from their files.

        A request that the archive refuses as a whole is sent again object by object, so that one bad object harms no
        other.

        Args:
            paths: DICOM files.

        Returns:
            What became of each, in their order. One whose answer was lost, or does not mention it, is in doubt.

        Raises:
            ReceiverSettingsError: The address, the credentials or TLS are wrong. Nothing was stored.
            ReceiverUnavailableError: The archive cannot be reached, or a file cannot be read. Nothing was stored.
            ReceiverRefusedError: A file is no DICOM object. Nothing was stored.
        """
        parts = [_Part.of(path) for path in paths]
        statuses: dict[int, StoreStatus] = {}
        waiting = deque(_packed(parts, self.connection.max_request_bytes))
        while waiting:
            indexes = waiting.popleft()
            try:
                said, again = self._stow({index: parts[index] for index in indexes})
            except ReceiverError as error:
                if not statuses:
                    raise
                left = set(range(len(parts))) - statuses.keys()
                statuses |= {index: parts[index].status(StoreKind.UNAVAILABLE, str(error)) for index in left}
                break
            statuses |= said
            waiting.extendleft(reversed(again))
        return tuple(statuses[index] for index in range(len(parts)))

    def find_study(self, study_instance_uid: str) -> Identity | None:
        """Ask whether a study exists there, and whose it is now (QIDO-RS).

        Args:
            study_instance_uid: Which.

        Returns:
            Whose it is, as far as the archive says; None where it has no such study.

        Raises:
            ReceiverSettingsError: The address or the credentials are wrong, or the archive does not answer questions.
            ReceiverUnavailableError: It cannot be asked now.
            ReceiverRefusedError: It has the study under more than one patient ID.
        """
        with quiet_pydicom():
            answers = self._search("studies", {"StudyInstanceUID": study_instance_uid})
            found = [identity_of(answer) for answer in answers]
        return one_patient(found, study_instance_uid)

    def find_instances(self, study_instance_uid: str, series: Sequence[str] = ()) -> frozenset[str]:
        """Ask which instances of a study are there (QIDO-RS): the proof that they arrived.

        Args:
            study_instance_uid: Of which study.
            series: SeriesInstanceUIDs to ask about; none for all that the archive has of the study.

        Returns:
            SOPInstanceUIDs.

        Raises:
            ReceiverSettingsError: The address or the credentials are wrong, or the archive does not answer questions.
            ReceiverUnavailableError: It cannot be asked now.
        """
        study = f"studies/{quote(study_instance_uid)}"
        paths = [f"{study}/series/{quote(uid)}/instances" for uid in series] or [f"{study}/instances"]
        with quiet_pydicom():
            answers = [answer for path in paths for answer in self._search(path, {}, study_instance_uid)]
            return frozenset(text(answer, "SOPInstanceUID") for answer in answers) - {""}

    def test_connection(self) -> tuple[bool, str]:
        """Say whether the archive can be reached and takes our credentials, within 10 seconds.

        It asks for a study that nobody has, which changes nothing. Whether it takes objects shows only when it is sent
        one.

        Returns:
            Whether all is well, and what is or what to set.
        """

        def verdict() -> tuple[bool, str]:
            with WebSession(replace(self.connection.web, connect_timeout=4.0, read_timeout=4.0)) as session:
                _understood(_searched(session, "studies", {"StudyInstanceUID": _PROBE}))
            return True, "The archive answers QIDO-RS. Nothing was stored: whether we may shows with the first object."

        try:
            _ = self.connection
        except ReceiverSettingsError as error:
            return verdict_of(error, self.dicomweb_conn_id)
        return within_test_time(verdict)

    def _stow(self, parts: Mapping[int, _Part]) -> tuple[dict[int, StoreStatus], list[list[int]]]:
        """Send one request: what became of its objects, and what is to be sent again in which requests."""
        body = store_body([part.file for part in parts.values()])
        headers = {"Content-Type": body.content_type, "Accept": DICOM_JSON}
        try:
            answer = self.get_conn().ask("Storing", "POST", "studies", data=body, headers=headers)
        except OutgoingFileError as error:
            bad = next(index for index, part in parts.items() if part.file == error.file)
            others = [index for index in parts if index != bad]
            return {bad: parts[bad].status(StoreKind.UNAVAILABLE, str(error))}, [others] if others else []
        except ReceiverUnavailableError as error:
            if not body.sent:
                raise
            return _all(parts, StoreKind.IN_DOUBT, str(error)), []
        if answer.status in _ANSWERED:
            said = read_answer(answer.body, [part.outgoing for part in parts.values()])
            if said is not None:
                return dict(zip(parts, said, strict=True)), []
        if answer.status < requests.codes.multiple_choices or answer.status in _MAY_HAVE_STORED:
            reason = f"the archive answered {answer.status}, and not what became of the objects"
            return _all(parts, StoreKind.IN_DOUBT, reason), []
        meant = refusal("Storing", answer.status)
        if not isinstance(meant, ReceiverRefusedError):
            raise meant
        if len(parts) > 1:
            return {}, [[index] for index in parts]
        return _all(parts, StoreKind.REFUSED, str(meant)), []

    def _search(self, path: str, query: Mapping[str, str], study_instance_uid: str = "") -> list[Dataset]:
        """Ask until a page brings nothing new; archives give as many at once as they like."""
        found: dict[str, Dataset] = {}
        while True:
            answer = _searched(self.get_conn(), path, {**query, "limit": str(_PAGE), "offset": str(len(found))})
            if answer.status == requests.codes.not_found and study_instance_uid and not found:
                # No such study or series there, or no such service: the question about studies tells which.
                self._search("studies", {"StudyInstanceUID": study_instance_uid})
                return []
            page = _understood(answer)
            if page.keys() <= found.keys():
                return list(found.values())
            found |= page


@dataclass(frozen=True, slots=True)
class _Part:
    """One object of a request."""

    outgoing: OutgoingObject
    file: OutgoingFile

    @classmethod
    def of(cls, path: Path) -> _Part:
        outgoing = OutgoingObject.read(path)
        try:
            size = path.stat().st_size
        except OSError as error:
            problem = f"A file could not be read ({error_name(error)}), so nothing was sent."
            raise ReceiverUnavailableError(problem) from None
        return cls(outgoing, OutgoingFile(outgoing.sop_instance_uid, "", path, size))

    def status(self, kind: StoreKind, reason: str) -> StoreStatus:
        return StoreStatus(self.outgoing.sop_instance_uid, kind, None, reason)


def _packed(parts: Sequence[_Part], limit: int) -> list[list[int]]:
    """Indexes of the objects of each request."""
    packed: list[list[int]] = []
    left = -1
    for index, part in enumerate(parts):
        size = part_size(part.file)
        if size > left:
            packed.append([])
            left = limit - len(store_body([]))
        packed[-1].append(index)
        left -= size
    return packed


def _searched(session: WebSession, path: str, query: Mapping[str, str]) -> Answer:
    return session.ask("Asking the archive", "GET", path, params=query, headers={"Accept": DICOM_JSON})


def _understood(answer: Answer) -> dict[str, Dataset]:
    """The datasets of an answer to a search, each once, by what they say."""
    if answer.status == requests.codes.no_content:
        return {}
    if answer.status != requests.codes.ok:
        error = refusal("Asking the archive", answer.status)
        # A question that is refused must never pass for a refused object.
        raise ReceiverSettingsError(str(error)) if isinstance(error, ReceiverRefusedError) else error
    content: Any = answer.json
    try:
        return {json.dumps(each, sort_keys=True): Dataset.from_json(each) for each in content}
    except Exception:  # what pydicom raises on what is no dataset is not limited to its own errors
        raise ReceiverSettingsError(
            "Asking the archive failed: the answer is no DICOM JSON. Check the path of the connection's base URL."
        ) from None


def _all(parts: Mapping[int, _Part], kind: StoreKind, reason: str) -> dict[int, StoreStatus]:
    return {index: part.status(kind, reason) for index, part in parts.items()}
