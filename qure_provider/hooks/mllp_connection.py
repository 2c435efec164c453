"""A connection to an HL7 receiver as data: what a user entered, checked, with the defaults filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from qure_provider import connection_forms
from qure_provider.hooks.connection import AirflowConnection, Fields
from qure_provider.hooks.receiver import ReceiverSettingsError
from qure_provider.hooks.tls import Tls
from qure_provider.reports.hl7_fields import (
    SENDING_APPLICATION,
    AcknowledgementMode,
    Hl7Fields,
    Hl7SettingsError,
    Hl7Version,
    ProcessingId,
    ResultStatus,
    WithdrawnStatus,
)
from qure_provider.reports.hl7_syntax import CharacterSet

HL7_PORT = 2575
"""The port that IANA has registered for ``hl7``."""


class NegativeCode(StrEnum):
    """What a receiver answers that did not take a message (MSA-1, table 0008)."""

    AE = "AE"
    AR = "AR"
    CE = "CE"
    CR = "CR"


RETRIED = frozenset({NegativeCode.AE, NegativeCode.CE})
"""Retried by default. See ``MllpConnection.retry_codes``."""


@dataclass(frozen=True, slots=True)
class MllpConnection:
    """Where a receiver is, how to talk to it, and what its messages look like.

    Attributes:
        conn_id: Its name in Airflow.
        host: Name or address.
        port: TCP port.
        fields: What its messages look like.
        tls: How it is encrypted; None where it is not.
        connect_timeout: Seconds to wait for the connection, and again for TLS.
        response_timeout: Seconds, from the message's first byte, until it must have been taken and acknowledged.
        retry_codes: With which negative acknowledgements a message is tried again later, where no error condition of
            table 0357 says more. The standard calls AE an error in the content and AR one that may pass, but receivers
            in the field mostly answer AE where they have trouble of their own and AR where they will never take the
            message; so AE and CE are retried by default, AR and CR not.
    """

    conn_id: str
    host: str
    port: int
    fields: Hl7Fields
    tls: Tls | None = None
    connect_timeout: float = 10.0
    response_timeout: float = 60.0
    retry_codes: frozenset[NegativeCode] = RETRIED

    @classmethod
    def from_airflow(cls, connection: AirflowConnection) -> MllpConnection:
        """Read an Airflow connection of type ``mllp``.

        ``host``, ``port`` and, for an encrypted client key, ``password`` are the connection's own; ``extra`` holds the
        other settings by the names of the attributes here, of ``Tls`` and of ``Hl7Fields``: ``tls`` as a boolean,
        ``retry_codes`` as a text such as ``AE CE`` (``none`` for none of them), ``places`` as a JSON object. Empty
        means the default.

        Args:
            connection: What Airflow returned.

        Returns:
            The settings.

        Raises:
            ReceiverSettingsError: A field is missing or wrong; the message names it and says what to enter.
        """
        entered = Fields.of(connection, connection_forms.MLLP, ReceiverSettingsError)
        host = (connection.host or "").strip()
        if not host:
            raise entered.error("host", "is empty. Enter the receiver's host name or address")
        if re.search(r"[/\s]", host):
            raise entered.error("host", "must be a host name or address alone, without scheme, path or blanks")
        port = connection.port or HL7_PORT
        if not 0 < port < 65536:
            raise entered.error("port", "must be a number from 1 to 65535")
        return cls(
            conn_id=entered.conn_id,
            host=host,
            port=port,
            fields=_hl7_fields(entered),
            tls=Tls.of(entered, connection.password or ""),
            connect_timeout=entered.number("connect_timeout", 10.0, at_least=0.1, at_most=600.0),
            response_timeout=entered.number("response_timeout", 60.0, at_least=0.1, at_most=3600.0),
            retry_codes=_retry_codes(entered),
        )


def _hl7_fields(entered: Fields) -> Hl7Fields:
    if entered.raw("processing_id") is None:
        raise entered.error("processing_id", "is not set. Enter P for production, or T while the interface is tested")
    try:
        return Hl7Fields(
            processing_id=entered.choice("processing_id", ProcessingId.TRAINING),
            version=entered.choice("version", Hl7Version.V2_5_1),
            sending_application=entered.text("sending_application") or SENDING_APPLICATION,
            sending_facility=entered.text("sending_facility"),
            receiving_application=entered.text("receiving_application"),
            receiving_facility=entered.text("receiving_facility"),
            acknowledgement=entered.choice("acknowledgement", AcknowledgementMode.ORIGINAL),
            character_set=entered.choice("character_set", CharacterSet.UTF_8),
            report_status=entered.choice("report_status", ResultStatus.NOT_VERIFIED),
            withdrawn_status=entered.choice("withdrawn_status", WithdrawnStatus.CORRECTION),
            include_scores=entered.boolean("include_scores", default=False),
            include_pdf=entered.boolean("include_pdf", default=False),
            places=_places(entered),
        )
    except Hl7SettingsError as error:
        raise ReceiverSettingsError(f"Connection {entered.conn_id}, field {error}.") from None


def _places(entered: Fields) -> Mapping[str, str]:
    value = entered.raw("places")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise entered.error("places", "is no JSON") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise entered.error("places", 'must be a JSON object, such as {"OBR-19": "{accession_number}"}')
    return value


def _retry_codes(entered: Fields) -> frozenset[NegativeCode]:
    words = re.findall(r"[^\s,]+", entered.text("retry_codes").upper())
    if not words:
        return RETRIED
    if words == ["NONE"]:
        return frozenset()
    try:
        return frozenset(map(NegativeCode, words))
    except ValueError:
        raise entered.error("retry_codes", f"must hold some of {' '.join(NegativeCode)}, or none") from None
