"""An association with an archive: opened or explained, and sending without holding an object in memory."""

from __future__ import annotations

import logging
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qure_provider.hooks.dicom_connection import DicomConnection
from qure_provider.hooks.receiver import ReceiverError, ReceiverSettingsError, ReceiverUnavailableError
from qure_provider.hooks.tls import connect, is_refusal, refused

Context = tuple[str, str]
"""A presentation context: SOP class and transfer syntax."""

MAX_CONTEXTS = 128
"""How many an association can have: their ids are the odd numbers of one byte (PS3.8, 9.3.2.2)."""

_WAITING_PDUS = 16
_TAKING = frozenset({"Sta5", "Sta6"})
"""The state in which data is exchanged (PS3.8, 9.2.1), and the one before: pynetdicom says that there is an association
a moment before it leaves that one."""
_SEND_BUFFER = 256 * 1024
"""Bytes that wait in the system: over a slow line they must be through before the answer's time is over."""
_MAX_SENT_PDU = 128 * 1024
_USER, _ACSE, _PRESENTATION = 1, 2, 3
_PERMANENT = 1
_REJECTIONS = {
    (_USER, 2): "it does not know the DICOM application context",
    (
        _USER,
        3,
    ): "it does not know us. Let our AE title (calling_ae_title) be entered there, with this machine's address",
    (_USER, 7): "it does not answer to this AE title. Check called_ae_title",
    (_ACSE, 2): "it speaks another version of the protocol",
}
"""Source and reason of a permanent rejection (PS3.8, 9.3.4)."""


class NothingAcceptedError(ReceiverSettingsError):
    """The archive took the association, and none of the presentation contexts."""


class AssociationLostError(Exception):
    """The archive, or the line, ended the association while something was under way."""


@contextmanager
def associated(connection: DicomConnection, contexts: Sequence[Context]) -> Iterator[Any]:
    """Open an association, and release it in the end.

    Args:
        connection: The settings.
        contexts: What is proposed, at most ``MAX_CONTEXTS``.

    Yields:
        An established ``pynetdicom`` association.

    Raises:
        NothingAcceptedError: The archive takes nothing of what was proposed.
        ReceiverSettingsError: The archive does not want to know us, or TLS cannot be agreed on.
        ReceiverUnavailableError: It cannot be reached, or has no room now.
    """
    association = _open(connection, contexts)
    try:
        yield association
    except BaseException:
        association.abort()
        raise
    if association.is_established:
        association.release()


def pynetdicom() -> Any:
    """Return the library, ready to be used.

    Raises:
        ReceiverSettingsError: It is not installed.
    """
    try:
        import pynetdicom as library
    except ModuleNotFoundError:
        raise ReceiverSettingsError(
            "DICOM needs pynetdicom, which is not installed. Install airflow-provider-qure[dicom]."
        ) from None
    library._config.STORE_SEND_CHUNKED_DATASET = True
    library._config.LOG_HANDLER_LEVEL = "none"
    # Its log repeats what is asked and answered, names included; what goes wrong is said by our own errors.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    return library


def _open(connection: DicomConnection, contexts: Sequence[Context]) -> Any:
    library = pynetdicom()
    entity = library.AE(ae_title=connection.calling_ae_title)
    entity.connection_timeout = connection.connect_timeout
    entity.acse_timeout = connection.association_timeout
    entity.dimse_timeout = entity.network_timeout = connection.response_timeout
    is_connected = threading.Event()

    def connected(event: Any) -> None:
        stream = event.assoc.dul.socket.socket
        # pynetdicom itself waits without end for the rest of what was begun, in both directions.
        stream.settimeout(connection.response_timeout)
        # A request goes out as two small packets; held back until the first is acknowledged, each object took 90 ms.
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        is_connected.set()

    try:
        association = entity.associate(
            connection.host,
            connection.port,
            contexts=[library.build_context(*context) for context in contexts],
            ae_title=connection.called_ae_title,
            max_pdu=connection.max_pdu,
            tls_args=(connection.tls.context(), connection.host) if connection.tls else None,
            evt_handlers=[(library.evt.EVT_CONN_OPEN, connected)],
        )
    except socket.gaierror:
        raise ReceiverUnavailableError("The archive's host name could not be resolved.") from None
    if not association.is_established:
        raise _explained(connection, association, is_connected=is_connected.is_set())
    _hold_back(library, association)
    return association


def _hold_back(library: Any, association: Any) -> None:
    """Let no more of an object be read than the network takes."""
    provider = association.dul
    provider.to_provider_queue = _Queue(
        library.pdu_primitives.P_DATA,
        lambda: bool(provider.is_alive() and provider.state_machine.current_state in _TAKING),
    )
    if not association.acceptor.primitive.maximum_length_received:
        association.acceptor.primitive.maximum_length_received = _MAX_SENT_PDU


class _Queue(queue.Queue[Any]):
    """Holds whoever sends back until the network has taken what went before.

    Without it pynetdicom reads a whole file into memory, and counts the time until the answer from then on.

    Args:
        kind: Class of what is held back; all else passes.
        is_taking: Whether the network takes anything at all.
    """

    def __init__(self, kind: type[Any], is_taking: Callable[[], bool]) -> None:
        super().__init__(_WAITING_PDUS)
        self._kind = kind
        self._is_taking = is_taking

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        del block, timeout
        if not isinstance(item, self._kind):
            self.maxsize = 0
        while not self.maxsize or self._is_taking():
            try:
                super().put(item, timeout=0.1)
            except queue.Full:
                continue
            return
        raise AssociationLostError


def _explained(connection: DicomConnection, association: Any, *, is_connected: bool) -> ReceiverError:
    """Say why an association was not established."""
    if association.is_rejected:
        return _rejected(association.acceptor.primitive)
    if association.rejected_contexts and not association.accepted_contexts:
        return NothingAcceptedError("The archive takes none of the kinds of objects that were offered to it.")
    try:
        _try_again(connection)
    except ReceiverError as error:
        return error
    if not is_connected:
        return ReceiverUnavailableError("The archive could not be reached.")
    return ReceiverUnavailableError(
        "The archive broke off, or did not answer, before there was an association. Does that port speak DICOM, and "
        "with or without TLS as set?"
    )


def _rejected(rejection: Any) -> ReceiverError:
    is_permanent = rejection.result == _PERMANENT and rejection.result_source != _PRESENTATION
    if not is_permanent:
        return ReceiverUnavailableError("The archive takes no association from us now.")
    reason = _REJECTIONS.get((rejection.result_source, rejection.diagnostic), "it gives no reason. Ask who runs it")
    return ReceiverSettingsError(f"The archive takes no association from us: {reason}.")


def _try_again(connection: DicomConnection) -> None:
    """Connect without DICOM, because pynetdicom keeps to itself what went wrong.

    Raises:
        ReceiverError: What goes wrong.
    """
    with connect(connection.host, connection.port, connection.tls, connection.connect_timeout) as stream:
        if not connection.tls:
            return
        stream.settimeout(1.0)
        try:
            stream.recv(1)
        except ssl.SSLError as error:
            if is_refusal(error):
                raise refused() from None
        except OSError:
            return
