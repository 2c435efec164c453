"""What an answer to an upload says of each file that was in the request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qure_provider.api.errors import QureError, QureRejectedError, QureSettingsError
from qure_provider.api.model import FileAcknowledgement, UploadAnswer
from qure_provider.hooks.multipart import file_name, form_key
from qure_provider.hooks.outgoing import OutgoingFile


@dataclass(slots=True)
class SeriesCount:
    """What is known of how much of one series the service holds.

    Whether the service counts what one request brought or all that it holds is not stated anywhere, so both are
    reckoned with.

    Attributes:
        acknowledged: Files of it that were acknowledged so far.
        counted: The highest count that any answer gave.
        is_of_all: Whether an answer counted more than its request had brought, so that counts are of all.
    """

    acknowledged: int = 0
    counted: int = 0
    is_of_all: bool = False

    def note(self, count: int, brought: int) -> None:
        """Take in the count of one answer."""
        self.counted = max(self.counted, count)
        self.is_of_all |= count > brought

    @property
    def is_short(self) -> bool:
        """Whether the service holds less than it acknowledged."""
        return self.is_of_all and self.counted < self.acknowledged


@dataclass(frozen=True, slots=True)
class Account:
    """Each file of one request, by its place there, in exactly one of three groups.

    Attributes:
        acknowledged: The service has it.
        refused: The service does not want it, and why.
        unclear: The answer does not vouch for it: it is sent again.
    """

    acknowledged: tuple[int, ...] = ()
    refused: Mapping[int, QureError] = field(default_factory=dict)
    unclear: tuple[int, ...] = ()


def take_account(files: Sequence[OutgoingFile], answer: UploadAnswer, series: Mapping[str, SeriesCount]) -> Account:
    """Find each file of a request in the answer to it.

    Per-file messages are matched by form key, file name or SOPInstanceUID: whether keys are echoed is not stated
    anywhere. Where they are not, they are taken by their order if all say the same, and else vouch for nothing, since a
    verdict on the wrong file would lose one silently. An answer without messages, as on the vendor's older pages,
    vouches for a series by naming it with a count that fits. A count that contradicts messages makes the series
    unclear. A request of one file leaves no room for doubt, so there the count does not matter.

    Args:
        files: What was sent, in the order of the form keys.
        answer: What was answered.
        series: What was known before of each series in it.

    Returns:
        What became of each file.
    """
    entries = _entries(files, answer)
    has_messages = bool(answer.files)
    taken = [not has_messages or (index in entries and entries[index].accepted) for index in range(len(files))]
    brought = Counter(file.series_instance_uid for file, is_taken in zip(files, taken, strict=True) if is_taken)
    vouched = {
        uid: len(files) == 1 or _fits(uid, count, answer, series[uid])
        for uid, count in brought.items()
        if uid in answer.series_instance_uids
    }
    acknowledged: list[int] = []
    refused: dict[int, QureError] = {}
    unclear: list[int] = []
    for index, file in enumerate(files):
        error = _refusal(entries[index]) if index in entries else None
        if error:
            refused[index] = error
        elif taken[index] and vouched.get(file.series_instance_uid):
            acknowledged.append(index)
        else:
            unclear.append(index)
    return Account(tuple(acknowledged), refused, tuple(unclear))


def _entries(files: Sequence[OutgoingFile], answer: UploadAnswer) -> dict[int, FileAcknowledgement]:
    entries = {
        index: entry
        for index, file in enumerate(files)
        for key in (form_key(index), file_name(index), file.sop_instance_uid)
        if (entry := answer.files.get(key))
    }
    if entries or len(answer.files) != len(files):
        return entries
    ordered = list(answer.files.values())
    if len({(entry.accepted, entry.license_expired) for entry in ordered}) > 1:
        return {}
    return dict(enumerate(ordered))


def _refusal(entry: FileAcknowledgement) -> QureError | None:
    if entry.license_expired:
        return QureSettingsError(
            "The service took a file but says that the license has expired, so no result may come of it. Ask Qure to "
            "renew it."
        )
    if entry.accepted:
        return None
    return QureRejectedError(f"The service did not register a file: {entry.message or 'it gave no reason'}.")


def _fits(uid: str, brought: int, answer: UploadAnswer, known: SeriesCount) -> bool:
    count = answer.series_counts.get(uid)
    if count is None:
        return bool(answer.files)
    if count == brought and not known.is_of_all:
        return True
    return max(count, known.counted) >= known.acknowledged + brought
