"""What of a batch is sent, and as whose: as it was exported, or de-identified."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qure_provider import settings

if TYPE_CHECKING:
    from qure_provider.dicom.deidentify import Deidentified, Deidentifier
    from qure_provider.dicom.model import Batch, Instance, Series
    from qure_provider.dicom.pseudonym import IdentityMap
    from qure_provider.hooks.outgoing import HeaderSpool, OutgoingFile
    from qure_provider.ledger.ledger import ResourceRow
    from qure_provider.ledger.pseudonyms import Sending
    from qure_provider.operators.work import BatchWork
    from qure_provider.store import AnyPath


Prepared = Sequence[tuple[str, "OutgoingFile"]] | Exception
"""SOPInstanceUIDs of the source and what is sent of each; or why nothing of a resource may be sent."""
Lacking = tuple["ResourceRow", Collection[str]]
"""A resource, and the SOPInstanceUIDs of it that the service lacks."""

_READERS = 8
"""Threads that try files. They hide the delay of a network file system or an object store."""
_AT_ONCE = 200
"""Files that are prepared at least before their way back is recorded: each record costs a transaction."""


class Sender(Protocol):
    """Prepares what is sent."""

    key_id: str
    """Of the key for pseudonyms; empty where things are sent as they are."""

    def refused(self, root: AnyPath, series: Sequence[Series]) -> dict[str, str]:
        """Tell which files cannot be sent.

        Args:
            root: Where their export lies.
            series: What would be sent.

        Returns:
            Why, in fixed words, by the path of each file.
        """

    def prepare(
        self, work: BatchWork, missing: Iterable[Lacking], spool: HeaderSpool
    ) -> Iterator[tuple[ResourceRow, Prepared]]:
        """Prepare what the service still lacks, as it is asked for.

        Args:
            work: The open batch.
            missing: What is lacking.
            spool: Where new headers are kept until they are sent.

        Yields:
            Each resource of which something is lacking, and what can be sent of it.
        """


def sender_for(policy: settings.IdentityPolicy) -> Sender:
    """Return what prepares files by a policy.

    Raises:
        QureSettingsError: Studies are to be de-identified and the connection with the key is missing, or wrong.
    """
    if policy is settings.IdentityPolicy.IDENTIFIED:
        return AsExported()
    from qure_provider.hooks.deidentify import DeidentifyHook

    hook = DeidentifyHook(settings.deidentify_conn_id())
    return Deidentifying(hook.get_conn, hook.pseudonyms.key_id)


class AsExported:
    """Sends every file as it is."""

    key_id = ""

    def refused(self, root: AnyPath, series: Sequence[Series]) -> dict[str, str]:
        """See ``Sender``."""
        del root, series
        return {}

    def prepare(
        self, work: BatchWork, missing: Iterable[Lacking], spool: HeaderSpool
    ) -> Iterator[tuple[ResourceRow, Prepared]]:
        """See ``Sender``."""
        del spool
        for row, uids in missing:
            if uids:
                yield row, [each for each in files_of(work, row) if each[0] in uids]


class Deidentifying:
    """De-identifies every file before anything of its resource is sent, and records the way back.

    A resource of which one file cannot be de-identified is not sent at all.

    Args:
        make: Makes what de-identifies files.
        key_id: Of its key.
    """

    def __init__(self, make: Callable[[], Deidentifier], key_id: str) -> None:
        self._make = make
        self._deidentifier = make()
        self.key_id = key_id

    def refused(self, root: AnyPath, series: Sequence[Series]) -> dict[str, str]:
        """See ``Sender``."""
        from qure_provider.dicom.export import export_at
        from qure_provider.dicom.reader import UnfitError
        from qure_provider.dicom.refusal import DeidentifyError

        export = export_at(root)

        def refused_of(one: Series) -> dict[str, str]:
            deidentifier, reasons = self._make(), {}
            for instance in one.instances:
                try:
                    with export.open(instance.path) as source:
                        deidentifier.deidentify(source)
                except (DeidentifyError, UnfitError) as error:
                    reasons[instance.path] = error.reason.value
            return reasons

        with ThreadPoolExecutor(_READERS, thread_name_prefix="deidentify") as pool:
            return {path: reason for reasons in pool.map(refused_of, series) for path, reason in reasons.items()}

    def prepare(
        self, work: BatchWork, missing: Iterable[Lacking], spool: HeaderSpool
    ) -> Iterator[tuple[ResourceRow, Prepared]]:
        """See ``Sender``."""
        group: list[tuple[ResourceRow, Prepared]] = []
        sendings: list[Sending] = []
        count = 0
        for row, uids in missing:
            if not uids:
                continue
            prepared, sending = self._prepare(work, row, uids, spool)
            group.append((row, prepared))
            sendings += [sending] if sending else []
            count += len(uids)
            if count >= _AT_ONCE:
                yield from _recorded(work, group, sendings)
                group, sendings, count = [], [], 0
        yield from _recorded(work, group, sendings)

    def _prepare(
        self, work: BatchWork, row: ResourceRow, uids: Collection[str], spool: HeaderSpool
    ) -> tuple[Prepared, Sending | None]:
        from qure_provider.api.errors import QureRejectedError
        from qure_provider.api.model import Route
        from qure_provider.dicom.pseudonym import PseudonymCollisionError
        from qure_provider.dicom.reader import UnfitError
        from qure_provider.dicom.refusal import DeidentifyError
        from qure_provider.ledger.pseudonyms import Sending

        files: list[tuple[str, OutgoingFile]] = []
        ways_back: list[IdentityMap] = []
        try:
            for uid, done, file in self._files(work, row, uids, spool):
                files.append((uid, file))
                ways_back.append(done.identity_map)
            whole = ways_back[0].joined(ways_back[1:])
        except (DeidentifyError, UnfitError, PseudonymCollisionError, _OtherIdentityError) as error:
            return QureRejectedError(f"{error}. It was not sent."), None
        first = files[0][1]
        sent_uid = first.series_instance_uid if row.route is Route.CT else first.sop_instance_uid
        return files, Sending(row.id, sent_uid, whole)

    def _files(
        self, work: BatchWork, row: ResourceRow, uids: Collection[str], spool: HeaderSpool
    ) -> Iterator[tuple[str, Deidentified, OutgoingFile]]:
        from qure_provider.dicom.export import export_at
        from qure_provider.dicom.verify import compare
        from qure_provider.hooks.outgoing import FileVersion, OutgoingFile
        from qure_provider.store import open_path

        root = open_path(work.export_root)
        export = export_at(root)
        for instance in instances_of(work.batch, row):
            if instance.sop_instance_uid not in uids:
                continue
            with export.open(instance.path) as source:
                version = FileVersion(source.size, source.modified)
                done = self._deidentifier.deidentify(source)
            is_planned = version == FileVersion(instance.size, instance.modified)
            if not is_planned or compare(done.identity_map.source, row.identity):
                raise _OtherIdentityError("A file changed since it was planned: run the plan again")
            yield (
                instance.sop_instance_uid,
                done,
                OutgoingFile(
                    sop_instance_uid=done.sop_instance_uid,
                    series_instance_uid=done.series_instance_uid,
                    path=_place(root, instance),
                    size=done.size,
                    header=spool.keep(done.header),
                    offset=done.offset,
                    version=version,
                ),
            )


def _recorded(
    work: BatchWork, group: Sequence[tuple[ResourceRow, Prepared]], sendings: Sequence[Sending]
) -> Iterator[tuple[ResourceRow, Prepared]]:
    """Record the way back of each resource; only then may it be sent."""
    from qure_provider.api.errors import QureRejectedError

    work.check()
    collisions = work.ledger.pseudonyms.record(sendings)
    for row, prepared in group:
        collision = collisions.get(row.id)
        yield row, QureRejectedError(str(collision)) if collision else prepared


class _OtherIdentityError(Exception):
    """A file is not the one that was planned."""


def files_of(work: BatchWork, row: ResourceRow) -> list[tuple[str, OutgoingFile]]:
    """Return a resource's files as they are, each with its SOPInstanceUID."""
    from qure_provider.store import open_path

    root = open_path(work.export_root)
    return [
        (instance.sop_instance_uid, as_it_is(root, row.series_instance_uid, instance))
        for instance in instances_of(work.batch, row)
    ]


def as_it_is(root: AnyPath, series_instance_uid: str, instance: Instance) -> OutgoingFile:
    """Return a planned instance as it is sent where nothing of it is replaced."""
    from qure_provider.hooks.outgoing import FileVersion, OutgoingFile

    return OutgoingFile(
        sop_instance_uid=instance.sop_instance_uid,
        series_instance_uid=series_instance_uid,
        path=_place(root, instance),
        size=instance.size,
        version=FileVersion(instance.size, instance.modified),
    )


def _place(root: AnyPath, instance: Instance) -> Any:
    path = root / instance.path
    return str(path) if isinstance(path, Path) else path


def instances_of(batch: Batch, row: ResourceRow) -> list[Instance]:
    """Return a resource's instances as a batch names them, which has its series twice where several nights owe it."""
    from qure_provider.api.model import Route

    return [
        instance
        for selected in batch.series
        if selected.series.series_instance_uid == row.series_instance_uid
        for instance in selected.series.instances
        if row.route is Route.CT or instance.sop_instance_uid == row.uid
    ]
