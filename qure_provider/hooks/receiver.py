"""What can go wrong between us and a system of the hospital that receives results."""

from __future__ import annotations


class ReceiverError(Exception):
    """Anything that kept a result from its receiver. Only its four subclasses are raised.

    Attributes:
        may_have_arrived: Whether the receiver may have it all the same, or a part of it.
    """

    may_have_arrived = False


class ReceiverSettingsError(ReceiverError):
    """Mend the connection: no retry can help until a person changes a setting on either side."""


class ReceiverUnavailableError(ReceiverError):
    """Try later: nothing was taken, and the same delivery may well succeed."""


class ReceiverRefusedError(ReceiverError):
    """Never will work: the receiver looked at it and said no; the same delivery will always be refused."""


class DeliveryInDoubtError(ReceiverError):
    """It was sent, but its receipt never came: whether it arrived must be asked, or it is sent again, recognisably."""

    may_have_arrived = True
