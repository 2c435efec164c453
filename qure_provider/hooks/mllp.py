"""The hook to receivers of HL7 v2 messages, over MLLP (HL7's minimal lower layer protocol, release 1)."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec

from airflow.sdk import BaseHook

from qure_provider.hooks.connection import verdict_of
from qure_provider.hooks.mllp_answer import Answer, refusal
from qure_provider.hooks.mllp_connection import MllpConnection
from qure_provider.hooks.mllp_wire import CARRIAGE_RETURN, END_BLOCK, START_BLOCK, blocks
from qure_provider.hooks.receiver import DeliveryInDoubtError, ReceiverError, ReceiverSettingsError
from qure_provider.hooks.tls import connect, is_refusal, refused
from qure_provider.reports.hl7_fields import AcknowledgementMode

TEST_TIMEOUT = 4.0
"""Seconds to connect, and again for TLS, while a connection is tested inside Airflow's API server."""

_LISTENING = 1.0
"""Seconds in which a receiver that wants no connection of ours closes it, while a connection is tested."""

_POSITIVE: Mapping[str, AcknowledgementMode] = {"AA": AcknowledgementMode.ORIGINAL, "CA": AcknowledgementMode.ENHANCED}


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A positive acknowledgement.

    Attributes:
        code: MSA-1: ``AA``, or ``CA`` where the receiver answers for storing alone.
        control_id: MSA-2, which is the message's MSH-10.
        text: MSA-3, the receiver's own words. They may name the patient: not to log.
        mode: ``original`` where the application has answered, ``enhanced`` where only the commit has.
    """

    code: str
    control_id: str
    text: str = field(default="", repr=False)
    mode: AcknowledgementMode = AcknowledgementMode.ORIGINAL


class MllpHook(BaseHook):
    """Sends HL7 v2 messages and reads their acknowledgements.

    Each message has a connection of its own: an acknowledgement that comes late then meets nobody, instead of being
    taken for the next message's, and no message is lost in a connection that the receiver had closed meanwhile.

    Args:
        mllp_conn_id: The Airflow connection, of type ``mllp``.
    """

    conn_name_attr = "mllp_conn_id"
    default_conn_name = "mllp_default"
    conn_type = "mllp"
    hook_name = "HL7 v2 (MLLP)"

    def __init__(self, mllp_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.mllp_conn_id = mllp_conn_id

    @cached_property
    def connection(self) -> MllpConnection:
        """The settings of its connection.

        Raises:
            ReceiverSettingsError: A field is missing or wrong; the message names it.
        """
        return MllpConnection.from_airflow(self.get_connection(self.mllp_conn_id))

    def get_conn(self) -> socket.socket:
        """Connect to the receiver.

        Returns:
            A connected socket, with TLS where the connection says so; the caller closes it.

        Raises:
            ReceiverSettingsError: TLS cannot be agreed on, or its files cannot be used.
            ReceiverUnavailableError: The receiver cannot be reached now.
        """
        connection = self.connection
        return connect(connection.host, connection.port, connection.tls, connection.connect_timeout)

    def send(self, message: bytes) -> Acknowledgement:
        """Send a message and wait until the receiver has taken it.

        Which acknowledgements are waited for is the message's own wish (MSH-15 and MSH-16). One that is not asked for
        is taken too: many receivers know the original mode alone. If the application's is asked for, the receiver has
        to give it on the same connection. An acknowledgement is never acknowledged by us.

        Args:
            message: In its character set, segments ended by carriage returns, without MLLP's frame.

        Returns:
            The last acknowledgement.

        Raises:
            ReceiverSettingsError: TLS cannot be agreed on, or the receiver does not take such messages at all (error
                conditions 200 to 203).
            ReceiverUnavailableError: Nothing was sent; or it was answered that it was not taken for a passing reason:
                error conditions 206 and 207, or, without a condition, one of ``retry_codes``.
            ReceiverRefusedError: It was answered that it was not taken, and would not be.
            DeliveryInDoubtError: It was sent, in whole or in part, and no acknowledgement came, or only half of one,
                or one that is not understood or of another message (MSA-2 is not our MSH-10).
            ValueError: If it is no message, has no MSH-10, or holds a byte of MLLP's frame.
        """
        _need_hl7()
        header = _Header.of(message)
        connection = self.connection
        is_stored = False
        try:
            with self.get_conn() as stream:
                give_up = time.monotonic() + connection.response_timeout
                stream.settimeout(connection.response_timeout)
                stream.sendall(START_BLOCK + message + END_BLOCK + CARRIAGE_RETURN)
                for block in blocks(stream, give_up):
                    answer = Answer.of(block)
                    if answer.control_id != header.control_id:
                        raise DeliveryInDoubtError(
                            "The acknowledgement is of another message: its MSA-2 is not our MSH-10."
                        )
                    if answer.code not in _POSITIVE:
                        raise refusal(answer, connection.retry_codes)
                    if answer.code == "AA" or not header.wants_application:
                        return Acknowledgement(answer.code, answer.control_id, answer.text, _POSITIVE[answer.code])
                    is_stored = True
            how = "the receiver closed the connection"
        except TimeoutError:
            how = f"{connection.response_timeout:g} seconds passed"
        except OSError as error:
            if is_refusal(error):
                raise refused() from None
            how = f"the connection broke ({type(error).__name__})"
        if is_stored:
            raise DeliveryInDoubtError(
                f"The receiver has stored the message, but {how} before its application had acknowledged it. If it "
                "never does so on this connection, set acknowledgement to commit."
            )
        raise DeliveryInDoubtError(f"The message was sent, but {how} before it was acknowledged.")

    def test_connection(self) -> tuple[bool, str]:
        """Connect without sending anything: there is no message that would do nothing at a clinical receiver.

        Returns:
            Whether the receiver listens, and what is or what to set.
        """
        try:
            connection = self.connection
            timeout = min(TEST_TIMEOUT, connection.connect_timeout)
            with connect(connection.host, connection.port, connection.tls, timeout) as stream:
                stream.settimeout(_LISTENING)
                try:
                    is_closed = not stream.recv(1)
                except TimeoutError:
                    is_closed = False
                except OSError as error:
                    if is_refusal(error):
                        raise refused() from None
                    is_closed = True
        except ReceiverError as error:
            return verdict_of(error, self.mllp_conn_id)
        if is_closed:
            return False, "The receiver closes the connection at once. Ask whether it lets this machine in."
        return True, (
            f"The receiver listens ({'with' if connection.tls else 'without'} TLS). Nothing was sent: whether it takes "
            "ORU^R01 shows with the first report."
        )


@dataclass(frozen=True, slots=True)
class _Header:
    """What of a message's MSH the exchange depends on."""

    control_id: str
    wants_application: bool

    @classmethod
    def of(cls, message: bytes) -> _Header:
        if message[:3] != b"MSH" or START_BLOCK in message or END_BLOCK in message:
            raise ValueError("no HL7 message: it must begin with MSH and hold no byte of MLLP's frame")
        fields = message.split(CARRIAGE_RETURN, 1)[0].split(message[3:4])
        control_id = fields[9].decode("latin-1") if len(fields) > 9 else ""
        if not control_id:
            raise ValueError("the message has no MSH-10")
        # Without MSH-15 the mode is the original one, in which there is only the application's.
        is_enhanced = len(fields) > 14 and fields[14] != b""
        return cls(control_id, is_enhanced and len(fields) > 15 and fields[15] not in (b"", b"NE"))


def _need_hl7() -> None:
    """Look for the library before anything is sent.

    Raises:
        ReceiverSettingsError: If it is not installed.
    """
    if find_spec("hl7") is None:
        raise ReceiverSettingsError("Install airflow-provider-qure[hl7] on every worker to send HL7 messages.")
