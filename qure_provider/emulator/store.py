"""What the emulator holds: images, the resources they make up, and how often each was computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from qure_provider.emulator.header import Header


@dataclass(frozen=True, slots=True)
class Image:
    """One held image.

    Attributes:
        sop_instance_uid: Its SOPInstanceUID.
        number: Number of the file that it came in.
        instance_number: Its InstanceNumber; 0 where it has none.
    """

    sop_instance_uid: str
    number: int
    instance_number: int


@dataclass(frozen=True, slots=True)
class Computation:
    """One time that a resource was computed.

    Attributes:
        started_at: Seconds since the epoch.
        images: How many images were there.
    """

    started_at: float
    images: int


@dataclass(slots=True)
class Resource:
    """What a result exists for: an X-ray image, or a series of anything else.

    Attributes:
        uid: SOPInstanceUID or SeriesInstanceUID.
        header: Of its first image.
        images: In order of arrival.
        computations: In order; the revision is their number.
        last_received: When its newest image came, seconds since the epoch.
        licensed: False where an image of it was answered ``license_expired``; it is never processed then.
    """

    uid: str
    header: Header
    last_received: float
    images: list[Image] = field(default_factory=list)
    computations: list[Computation] = field(default_factory=list)
    licensed: bool = True

    @property
    def uids(self) -> tuple[str, str, str]:
        """Every UID that plans and faults may name it by, the most exact first."""
        return self.uid, self.header.series_instance_uid, self.header.study_instance_uid

    def settle(self, now: float, quiet_seconds: float | None) -> None:
        """Begin the computation that quiet begins by itself, if its time has come.

        Args:
            now: Seconds since the epoch.
            quiet_seconds: That quiet time; None where nothing begins by itself.
        """
        if quiet_seconds is None or self.computations or self.header.is_xray:
            return
        started_at = self.last_received + quiet_seconds
        if now > started_at:
            self.computations.append(Computation(started_at, len(self.images)))


class Store:
    """Everything held, found by its UIDs.

    Args:
        root: Folder for received files.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files = 0
        self._resources: dict[str, Resource] = {}
        self._by_sop: dict[str, Resource] = {}
        self._by_series: dict[str, list[Resource]] = {}

    def place(self) -> tuple[int, Path]:
        """Number the next file, and say where it goes.

        Returns:
            Its number and path.
        """
        self._files += 1
        return self._files, self.path(self._files)

    def path(self, number: int) -> Path:
        """Say where a file lies.

        Args:
            number: The file's number.

        Returns:
            Its path.
        """
        return self._root / f"{number // 1000:04d}" / f"{number:07d}.dcm"

    def register(self, header: Header, number: int, now: float, quiet_seconds: float | None) -> bool:
        """Take one image.

        Args:
            header: Its header.
            number: Number of its file.
            now: Seconds since the epoch.
            quiet_seconds: See ``Resource.settle``.

        Returns:
            Whether it was new; one that was held already changes nothing.
        """
        if header.sop_instance_uid in self._by_sop:
            return False
        uid = header.sop_instance_uid if header.is_xray else header.series_instance_uid
        resource = self._resources.get(uid)
        if resource is None:
            resource = self._resources[uid] = Resource(uid, header, now)
            self._by_series.setdefault(header.series_instance_uid, []).append(resource)
        else:
            resource.settle(now, quiet_seconds)
        resource.images.append(Image(header.sop_instance_uid, number, header.instance_number))
        resource.last_received = now
        self._by_sop[header.sop_instance_uid] = resource
        if header.is_xray:
            resource.computations.append(Computation(now, 1))
        return True

    def find(self, uid: str) -> Resource | None:
        """Find a resource by its own UID."""
        return self._resources.get(uid)

    def by_sop(self, sop_instance_uid: str) -> Resource | None:
        """Find the resource that an image belongs to."""
        return self._by_sop.get(sop_instance_uid)

    def by_series(self, series_instance_uid: str) -> list[Resource]:
        """Find the resources of a series: one, or each image of an X-ray series."""
        return self._by_series.get(series_instance_uid, [])

    def held(self, series_instance_uid: str) -> int:
        """Count the images held of a series."""
        return sum(len(resource.images) for resource in self.by_series(series_instance_uid))

    def all(self) -> Iterable[Resource]:
        """Every resource, in order of arrival."""
        return self._resources.values()

    def forget(self) -> None:
        """Hold nothing any more; received files stay on disk."""
        self._resources.clear()
        self._by_sop.clear()
        self._by_series.clear()
