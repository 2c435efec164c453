"""What an HL7 receiver answers, and which of our errors a refusal is."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qure_provider.hooks.mllp_connection import NegativeCode
from qure_provider.hooks.receiver import (
    DeliveryInDoubtError,
    ReceiverError,
    ReceiverRefusedError,
    ReceiverSettingsError,
    ReceiverUnavailableError,
)

if TYPE_CHECKING:
    import hl7

_UNSUPPORTED = {
    "200": "the message type ORU is not taken there",
    "201": "the event R01 is not taken there",
    "202": "the processing ID is not taken there; change processing_id",
    "203": "the HL7 version is not taken there; change version",
}
"""Error conditions of table 0357 that only a person can mend, on either side."""

_PASSING = {"206": "a record is locked there", "207": "it has an internal error"}

_LASTING = {
    "100": "segments are out of order or missing",
    "101": "a required field is missing",
    "102": "a field is of the wrong type",
    "103": "a code is not known there",
    "104": "a value is too long",
    "204": "patient, order or another key is not known there",
    "205": "a key is known there already; perhaps an earlier try of this message arrived",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What an acknowledgement says.

    Attributes:
        code: MSA-1.
        control_id: MSA-2.
        text: MSA-3.
        condition: Error condition of table 0357, from ERR-3, ERR-1 or MSA-6; empty where there is none.
        location: The field that it is about (``PID-3``); empty where it is not said.
    """

    code: str
    control_id: str
    text: str = field(repr=False)
    condition: str
    location: str

    @classmethod
    def of(cls, block: bytes) -> Answer:
        """Read an acknowledgement.

        Args:
            block: As it came, without MLLP's frame.

        Returns:
            What it says.

        Raises:
            DeliveryInDoubtError: If it is none.
        """
        import hl7

        try:
            # Only the receiver's free text can be outside of ASCII.
            message = hl7.parse(block.decode("utf-8", "replace"))  # type: ignore[no-untyped-call]
            acknowledgement = message.segment("MSA")
            errors = [error for error in message if str(error[0]) == "ERR"]
        except (hl7.HL7Exception, LookupError, AssertionError):  # the last for delimiters that do not differ
            raise DeliveryInDoubtError("The receiver's answer is no acknowledgement that can be read.") from None
        # HL7 2.5 has location and code in ERR-2 and ERR-3; before, ERR-1 has the location with the code behind it.
        sources = [(_field(error, 3), _field(error, 2)) for error in errors]
        sources += [(_component(_field(error, 1), 4), _field(error, 1)) for error in errors]
        sources += [(_field(acknowledgement, 6), "")]
        condition, location = next(((code, where) for code, where in sources if _condition(code)), ("", ""))
        return cls(
            code=_field(acknowledgement, 1).strip().upper(),
            control_id=_field(acknowledgement, 2).strip(),
            text=_field(acknowledgement, 3),
            condition=_condition(condition),
            location=_location(location),
        )


def _field(segment: hl7.Segment, number: int) -> str:
    return str(segment[number]) if number < len(segment) else ""


def _component(field: str, number: int) -> str:
    parts = field.split("~")[0].split("^")
    return parts[number - 1] if number <= len(parts) else ""


def _condition(code: str) -> str:
    match = re.match(r"\d{1,3}(?=$|[\^&~])", code)
    return match[0] if match and match[0].strip("0") else ""


def _location(field: str) -> str:
    match = re.match(r"([A-Z][A-Z0-9]{2})(?:\^\d*(?:\^(\d{1,3}))?)?(?=$|[\^&~])", field)
    return "" if match is None else "-".join(filter(None, match.groups()))


def refusal(answer: Answer, retry_codes: Set[NegativeCode]) -> ReceiverError:
    """Turn a negative acknowledgement into one of our errors.

    The receiver's own words are left out, for they may name the patient; field names and numbers are not.

    Args:
        answer: What it said.
        retry_codes: With which codes, where no error condition says more, the message is tried again later.

    Returns:
        The error, to be raised.
    """
    if answer.code not in set(NegativeCode):
        return DeliveryInDoubtError("The receiver's acknowledgement code is none of table 0008.")
    reasons = _UNSUPPORTED | _PASSING | _LASTING
    details = [f"condition {answer.condition}" if answer.condition else "", answer.location]
    said = ", ".join(filter(None, [answer.code, *details]))
    because = reasons.get(answer.condition, f"its own log says why, under control ID {answer.control_id}")
    text = f"The receiver did not take the message ({said}): {because}."
    if answer.condition in _UNSUPPORTED:
        return ReceiverSettingsError(text)
    if answer.condition in _PASSING:
        return ReceiverUnavailableError(text)
    if answer.condition in _LASTING or answer.code not in retry_codes:
        return ReceiverRefusedError(text)
    return ReceiverUnavailableError(text)
