"""MLLP's blocks on a connection to an HL7 receiver."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

from qure_provider.hooks.receiver import DeliveryInDoubtError

START_BLOCK = b"\x0b"
END_BLOCK = b"\x1c"
CARRIAGE_RETURN = b"\x0d"

MAX_ACKNOWLEDGEMENT = 1024 * 1024
"""Bytes of an acknowledgement that are read at most."""


def blocks(stream: socket.socket, give_up: float) -> Iterator[bytes]:
    """Read one MLLP block after the other, however many packets they come in, until the connection is closed.

    The end block alone ends one, for the carriage return behind it is left out by some receivers.

    Args:
        stream: The connection.
        give_up: When to stop waiting, by the monotonic clock.

    Yields:
        What stands in a block.

    Raises:
        DeliveryInDoubtError: If the connection is closed in the middle of one, or it is too long.
        OSError: If nothing more came in time, or the connection broke.
    """
    received = b""
    while True:
        block, end, rest = received.partition(END_BLOCK)
        if end:
            received = rest
            yield block.rpartition(START_BLOCK)[2]
            continue
        if len(received) > MAX_ACKNOWLEDGEMENT:
            raise DeliveryInDoubtError("The receiver's answer is too long for an acknowledgement.")
        remaining = give_up - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        stream.settimeout(remaining)
        data = stream.recv(65536)
        if not data:
            if received.strip():
                raise DeliveryInDoubtError("The receiver closed the connection in the middle of its acknowledgement.")
            return
        received += data
