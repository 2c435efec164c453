"""What an export holds: every file of it either in a series, or in a row that says why not."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from pydicom import uid

from qure_provider.dicom.export import Export, Listing, RemotePath, export_at
from qure_provider.dicom.model import Fate, Instance, PassedOver, Scan, Series
from qure_provider.dicom.quiet import quiet_pydicom
from qure_provider.dicom.reader import UnfitError, read_header
from qure_provider.dicom.reasons import Duplicate, Ignored, Oddity, Quarantine
from qure_provider.dicom.record import WANTED, Attributes, Record, RecordMaker
from qure_provider.dicom.select import ROUTES

_UNFINISHED = re.compile(r".*(?:\.part|\.partial|\.tmp|\.temp|\.filepart|\.crdownload|\.swp|~)", re.IGNORECASE)
_MARKER = re.compile(
    r"\..*|_(?:success|done|complete|ready)|.*\.(?:done|ok|ready|complete|finished|md5|sha256)"
    r"|(?:thumbs\.db|desktop\.ini|autorun\.inf|lockfile)",
    re.IGNORECASE | re.DOTALL,
)
_AGREED = ("patient_id", "issuer_of_patient_id", "accession_number", "birth_date", "sex", "patient_name")
T = TypeVar("T")
V = TypeVar("V")

_CHUNK = 64
_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ScanLimits:
    """How much an export may ask of a scan.

    Attributes:
        files: Files, links and folders that cannot be listed, together; an export of more is refused whole.
        header_bytes: Bytes of one file's header that are read; values that are skipped do not count.
        object_bytes: Length of a file that one request can carry. The service's limit is 100 MB for a request
            (documentation.qure.ai, Uploading the Dicoms); the default leaves room for the request's own framing.
    """

    files: int = 2_000_000
    header_bytes: int = 16 * 1024 * 1024
    object_bytes: int = 99_990_000


def scan(root: Path | RemotePath, *, workers: int = 8, limits: ScanLimits = ScanLimits()) -> Scan:
    """Reads an export: a folder of DICOM files, nested or flat, under any names.

    Only headers are read. Whether the pixel data is whole is told from lengths; the content of files is read only where
    a SOPInstanceUID recurs.

    - A link is not followed. One that stays inside the export is a duplicate; one that leads out is quarantined.
    - A folder that cannot be listed counts as one file found, and is quarantined under its path with a final slash.
    - A temporary name (``.part``, ``.tmp``, ...) is quarantined unread. A hidden DICOM file is quarantined too; other
      hidden files and markers (``_SUCCESS``, ``night.done``, ``Thumbs.db``) are not selected.
    - A file without preamble and file header is quarantined: files are sent as they are, and none is made up.
    - Objects of one study must agree about patient ID, issuer, birth date, sex, name and accession number, character by
      character, or the whole study is quarantined; what has no pixels (a report, say) may leave one empty.
    - Copies that are the same byte for byte are sent once, the first by path. Copies that differ are all quarantined,
      because nothing tells which is right.

    Args:
        root: A local folder, or a folder of any fsspec file system (``ObjectStoragePath``, ``UPath``).
        workers: Threads that read. They hide the delay of a network file system or an object store.
        limits: How much the export may ask of the scan.

    Returns:
        What it holds; ``found == sum(len(series.instances)) + len(passed_over)``. Series are in the order of their
        first file, rows in the order of their path.

    Raises:
        TooManyFilesError: If the export holds more than ``limits.files``.
        OSError: If the folder itself cannot be listed, or the store does not answer.
    """
    export = export_at(root)
    return _scan(export, export.list_all(limits.files), workers, limits)


def scan_files(
    root: Path | RemotePath,
    paths: Sequence[str],
    *,
    workers: int = 8,
    limits: ScanLimits = ScanLimits(),
) -> Scan:
    """Reads the named files of an export as :func:`scan` does the whole of it.

    Args:
        root: The folder that the files are below.
        paths: Relative to it. A link inside the export stands for the file it leads to; a path that leaves the export
            is quarantined; one that occurs twice counts once.
        workers: See :func:`scan`.
        limits: See :func:`scan`.

    Returns:
        What they hold.

    Raises:
        OSError: If the store does not answer.
    """
    export = export_at(root)
    return _scan(export, export.list_these(paths), workers, limits)


def quarantine(scanned: Scan, reasons: Mapping[str, str]) -> Scan:
    """Quarantines files that turned out only after the scan to be unfit.

    Args:
        scanned: What an export holds.
        reasons: Why, in fixed words, by the path of each file.

    Returns:
        The same with these files among what is passed over.
    """
    rows = list(scanned.passed_over)
    series = []
    for each in scanned.series:
        fit = tuple(instance for instance in each.instances if instance.path not in reasons)
        rows += (
            PassedOver(instance.path, Fate.QUARANTINED, reasons[instance.path], instance.size, each.series_instance_uid)
            for instance in each.instances
            if instance.path in reasons
        )
        if fit:
            series.append(replace(each, instances=fit))
    return Scan(scanned.found, tuple(series), tuple(sorted(rows, key=lambda row: row.path)))


def _scan(export: Export, listing: Listing, workers: int, limits: ScanLimits) -> Scan:
    records: list[Record] = []
    rows = list(listing.passed_over)
    with quiet_pydicom():
        for found in _map(partial(_read, export, RecordMaker(), limits), listing.files, workers):
            if isinstance(found, Record):
                records.append(found)
            else:
                rows.append(found)
        verdicts = _judge(export, records, workers)
    members: dict[str, list[Record]] = defaultdict(list)
    for record, verdict in zip(records, verdicts, strict=True):
        if verdict is None:
            members[record.series_instance_uid].append(record)
        else:
            fate = Fate.DUPLICATE if isinstance(verdict, Duplicate) else Fate.QUARANTINED
            instance = record.instance
            rows.append(PassedOver(instance.path, fate, verdict.value, instance.size, record.series_instance_uid))
    return Scan(
        found=len(listing.files) + len(listing.passed_over),
        series=tuple(_series(each) for each in members.values()),
        passed_over=tuple(sorted(rows, key=lambda row: row.path)),
    )


def _map(work: Callable[[T], V], items: Sequence[T], workers: int) -> Iterator[V]:
    """Like :func:`map`, with threads that take a chunk of the items at a time."""
    if workers == 1 or len(items) <= _CHUNK:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="scan")
    try:
        chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
        for done in pool.map(lambda chunk: [work(item) for item in chunk], chunks):
            yield from done
    finally:
        pool.shutdown(cancel_futures=True)


def _read(export: Export, maker: RecordMaker, limits: ScanLimits, path: str) -> Record | PassedOver:
    """What one file is: a record, with a problem perhaps, or a row where its header is of no use."""
    name = posixpath.basename(path)
    size = 0
    try:
        with export.open(path) as file:
            size = file.size
            if _UNFINISHED.fullmatch(name):
                raise UnfitError(Quarantine.UNFINISHED)
            header = read_header(file, WANTED, limit=limits.header_bytes)
            modified = file.modified
    except UnfitError as error:
        if error.reason in (Quarantine.EMPTY, Quarantine.NOT_DICOM) and _MARKER.fullmatch(name):
            return PassedOver(path, Fate.NOT_SELECTED, Ignored.MARKER.value, size)
        return PassedOver(path, Fate.QUARANTINED, error.reason.value, size)
    if name.startswith("."):
        return PassedOver(path, Fate.QUARANTINED, Quarantine.UNFINISHED.value, size)
    if header.media_storage_class_uid == uid.MediaStorageDirectoryStorage:
        return PassedOver(path, Fate.NOT_SELECTED, Ignored.DIRECTORY.value, size)
    record = maker.make(path, size, modified, header)
    if record.problem is Quarantine.MISSING_UID and _belongs_to_no_study(record):
        return PassedOver(path, Fate.NOT_SELECTED, Ignored.NO_STUDY.value, size)
    record.problem = record.problem or _problem(record, limits)
    return record


def _problem(record: Record, limits: ScanLimits) -> Quarantine | None:
    is_image = _is_image_class(record.instance.sop_class_uid)
    if is_image and not record.has_pixels:
        return Quarantine.NO_PIXELS
    if is_image and not record.modality:
        return Quarantine.NO_MODALITY
    if record.modality in ROUTES and record.instance.size > limits.object_bytes:
        return Quarantine.TOO_LARGE
    return None


def _belongs_to_no_study(record: Record) -> bool:
    """Whether it is a palette, a hanging protocol or the like: DICOM, but nobody's."""
    sop_class = record.instance.sop_class_uid
    if not sop_class or _is_image_class(sop_class):
        return False
    return not record.has_pixels and not record.identity.study_instance_uid


@cache
def _is_image_class(sop_class_uid: str) -> bool:
    return "Image Storage" in uid.UID(sop_class_uid).name


def _judge(export: Export, records: Sequence[Record], workers: int) -> list[Quarantine | Duplicate | None]:
    """Says of each record why it is not sent, None where it is; what the file itself is guilty of goes first."""
    verdicts: list[Quarantine | Duplicate | None] = [record.problem for record in records]

    def hold(indexes: Iterable[int], reason: Quarantine) -> None:
        for i in indexes:
            verdicts[i] = verdicts[i] or reason

    copies: list[list[int]] = []
    for indexes in _grouped(records, lambda record: record.instance.sop_instance_uid):
        if len({records[i].series_instance_uid for i in indexes} - {""}) > 1:
            hold(indexes, Quarantine.TWO_SERIES)
        elif len(whole := [i for i in indexes if verdicts[i] is None]) > 1:
            copies.append(whole)
    contents = _contents(export, [records[i].instance for indexes in copies for i in indexes], workers)
    for indexes in copies:
        if len({contents[records[i].instance.path] for i in indexes}) > 1:
            hold(indexes, Quarantine.DIFFERENT_COPIES)
        else:
            for i in indexes[1:]:
                verdicts[i] = Duplicate.COPY
    for indexes in _grouped(records, lambda record: record.series_instance_uid):
        if len({records[i].identity.study_instance_uid for i in indexes} - {""}) > 1:
            hold(indexes, Quarantine.TWO_STUDIES)
        elif len({records[i].modality for i in indexes} - {""}) > 1:
            hold(indexes, Quarantine.TWO_MODALITIES)
    for indexes in _grouped(records, lambda record: record.identity.study_instance_uid):
        if _disagree([records[i] for i in indexes]):
            hold(indexes, Quarantine.TWO_PATIENTS)
    return verdicts


def _grouped(records: Sequence[Record], key: Callable[[Record], str]) -> Iterable[list[int]]:
    """Indexes of the records that share a UID; those without one share nothing."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        groups[key(record)].append(i)
    groups.pop("", None)
    return [indexes for indexes in groups.values() if len(indexes) > 1]


def _disagree(records: Sequence[Record]) -> bool:
    """Whether objects of one study name two patients or accession numbers.

    Reports and presentation states often leave out what the images say, and a file that ends too early cannot say it:
    for what has no pixels an empty value is no contradiction.
    """
    identities = {(id(record.identity), record.has_pixels): record for record in records}
    for name in _AGREED:
        values = {
            value for record in identities.values() if (value := getattr(record.identity, name)) or record.has_pixels
        }
        if len(values) > 1:
            return True
    return False


def _contents(export: Export, instances: Sequence[Instance], workers: int) -> dict[str, tuple[int, bytes | str]]:
    """What tells files apart: length and digest, by path. A file that cannot be read any more is like no other."""
    with_size = Counter((instance.sop_instance_uid, instance.size) for instance in instances)

    def content(instance: Instance) -> tuple[int, bytes | str]:
        if with_size[instance.sop_instance_uid, instance.size] == 1:
            return instance.size, instance.path
        digest = hashlib.blake2b()
        try:
            with export.open(instance.path) as file:
                for offset in range(0, file.size, _PIECE):
                    digest.update(file.read(offset, _PIECE))
                return file.size, digest.digest()
        except UnfitError:
            return instance.size, instance.path

    paths = [instance.path for instance in instances]
    return dict(zip(paths, _map(content, instances, workers), strict=True))


def _series(members: list[Record]) -> Series:
    """Puts one series together; what describes it is what most of its files say."""
    members.sort(key=_place)
    said = Counter(id(record.attributes) for record in members)
    most_common = said.most_common(1)[0][0]
    typical = next(record for record in members if id(record.attributes) == most_common)
    oddities = set().union(*(record.oddities for record in members))
    if len({record.attributes.image_type for record in members}) > 1:
        oddities.add(Oddity.MIXED_IMAGES)
    extents = [record.extent for record in members if record.extent]
    return Series(
        identity=typical.identity,
        series_instance_uid=typical.series_instance_uid,
        modality=typical.modality,
        instances=tuple(record.instance for record in members),
        acquired=typical.acquired,
        extent=(
            (min(low for low, _ in extents), max(high for _, high in extents)) if len(extents) == len(members) else None
        ),
        warnings=tuple(sorted(oddity.value for oddity in oddities)),
        **{field.name: getattr(typical.attributes, field.name) for field in fields(Attributes)},
    )


def _place(record: Record) -> tuple[bool, int, str]:
    number = record.instance.instance_number
    return number is None, number or 0, record.instance.sop_instance_uid
