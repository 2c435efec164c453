"""A connection to a DICOM archive as data: what a user entered, checked, with the defaults filled in."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qure_provider import connection_forms
from qure_provider.hooks.connection import AirflowConnection, Fields
from qure_provider.hooks.receiver import ReceiverSettingsError
from qure_provider.hooks.tls import Tls

DICOM_PORT = 104
"""The port that IANA has registered for ``acr-nema``."""
DEFAULT_CALLING_AE_TITLE = "QURE_AIRFLOW"

_AE_TITLE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}")
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")


@dataclass(frozen=True, slots=True)
class DicomConnection:
    """Where an archive is and how to talk to it over DIMSE.

    Attributes:
        conn_id: Its name in Airflow.
        host: Name or address.
        port: TCP port.
        called_ae_title: The archive's AE title.
        calling_ae_title: Ours, which the archive may have to know.
        tls: How it is encrypted; None where it is not.
        connect_timeout: Seconds to wait for the connection.
        association_timeout: Seconds to wait for the association to be accepted.
        response_timeout: Seconds without a single byte, or without an answer once all is sent, after which an
            association is given up.
        max_pdu: Largest PDU that we take, in bytes; 0 for any. What we send goes by what the archive takes.
        parallel_associations: Associations at once, at most.
    """

    conn_id: str
    host: str
    port: int
    called_ae_title: str
    calling_ae_title: str = DEFAULT_CALLING_AE_TITLE
    tls: Tls | None = None
    connect_timeout: float = 10.0
    association_timeout: float = 30.0
    response_timeout: float = 60.0
    max_pdu: int = 16382
    parallel_associations: int = 2

    @classmethod
    def from_airflow(cls, connection: AirflowConnection) -> DicomConnection:
        """Read an Airflow connection of type ``dicom``.

        ``host`` and ``port`` say where the archive is, ``password`` opens the client key where that is encrypted, and
        ``extra`` holds the other settings by the names of the attributes here and of ``Tls``, with ``tls`` as a
        boolean.

        Args:
            connection: What Airflow returned.

        Returns:
            The settings.

        Raises:
            ReceiverSettingsError: A field is missing or wrong; the message names it and says what to enter.
        """
        fields = Fields.of(connection, connection_forms.DICOM, ReceiverSettingsError)
        host = (connection.host or "").strip()
        if not host:
            raise fields.error("host", "is empty. Enter the archive's name or address")
        if not _HOST.fullmatch(host):
            raise fields.error("host", "must be a name or address alone, without scheme, port or path")
        return cls(
            conn_id=fields.conn_id,
            host=host,
            port=_port(connection, fields),
            called_ae_title=_ae_title(fields, "called_ae_title", ""),
            calling_ae_title=_ae_title(fields, "calling_ae_title", DEFAULT_CALLING_AE_TITLE),
            tls=Tls.of(fields, connection.password or ""),
            connect_timeout=fields.number("connect_timeout", 10.0, at_least=0.1, at_most=600.0),
            association_timeout=fields.number("association_timeout", 30.0, at_least=0.1, at_most=600.0),
            response_timeout=fields.number("response_timeout", 60.0, at_least=0.1, at_most=3600.0),
            max_pdu=fields.number("max_pdu", 16382, at_least=0, at_most=2**32 - 1),
            parallel_associations=fields.number("parallel_associations", 2, at_least=1, at_most=8),
        )


def _port(connection: AirflowConnection, fields: Fields) -> int:
    port = connection.port or DICOM_PORT
    if not 1 <= int(port) <= 65535:
        raise fields.error("port", "must be a whole number from 1 to 65535")
    return int(port)


def _ae_title(fields: Fields, name: str, default: str) -> str:
    title = fields.text(name) or default
    if not title:
        raise fields.error(name, "is empty. Enter the AE title by which the archive knows itself")
    if not _AE_TITLE.fullmatch(title):
        raise fields.error(name, "must be 1 to 16 ASCII characters, without a backslash")
    return title
