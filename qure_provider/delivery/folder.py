"""A folder, or object storage, as a destination."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from qure_provider.delivery.destination import Arrival, ObjectsParcel, Receipt
from qure_provider.hooks.receiver import ReceiverSettingsError, ReceiverUnavailableError
from qure_provider.ledger.deliveries import ParcelKind
from qure_provider.store import Store


class FolderDestination:
    """A folder that gets ``<StudyInstanceUID>/<result>/`` with a result's files, each whole or not at all.

    Args:
        name: Its URL: ``file:///mnt/results``, or any that ``ObjectStoragePath`` understands.

    Raises:
        ReceiverSettingsError: If it is no such URL, or what it takes to use it is not installed.
    """

    takes = ParcelKind.OBJECTS
    only_dicom = False
    lanes = 4

    def __init__(self, name: str) -> None:
        if "{night" in name:
            raise ReceiverSettingsError(
                "A folder as a destination is the same for all nights, and holds a folder for each study: leave "
                "{night} out."
            )
        try:
            self._store = Store(name)
            root = self._store.root
            is_usable = root.is_absolute() if isinstance(root, Path) else root.fs is not None
        except (ImportError, ValueError):
            is_usable = False
        if not is_usable:
            raise ReceiverSettingsError(
                "It is no folder that can be used here: file:// takes an absolute path, and object storage needs its "
                "Airflow provider on every worker, such as airflow-provider-qure[s3]."
            )
        self.is_loopback = isinstance(root, Path)

    def send(self, parcel: ObjectsParcel) -> Receipt:
        """Copy the files, or note beside them that they are withdrawn."""
        folder = parcel.folder.removeprefix("studies/")
        try:
            with self._store.scratch() as scratch:
                self.render(parcel, scratch)
                for path in sorted(scratch.iterdir()):
                    self._store.put(path, f"{folder}/{path.name}")
        except OSError as error:
            raise ReceiverUnavailableError(
                f"The folder cannot be written to ({error.strerror or type(error).__name__}). Check that it is mounted "
                "and has room, and that workers may write there."
            ) from None
        return {"folder": folder}

    def arrived(self, parcel: ObjectsParcel) -> Arrival:
        """Look whether every file is there."""
        folder = parcel.folder.removeprefix("studies/")
        names = [asset.name for asset, _ in parcel.files]
        there = all(self._store.exists(f"{folder}/{name}") for name in names)
        return Arrival.ARRIVED if names and there else Arrival.ABSENT

    def render(self, parcel: ObjectsParcel, folder: Path) -> None:
        """Write the files."""
        for asset, path in parcel.files:
            shutil.copyfile(path, folder / asset.name)
        if parcel.withdrawn_because:
            note = {"withdrawn": parcel.made_at.isoformat(), "because": parcel.withdrawn_because}
            (folder / "WITHDRAWN.json").write_text(json.dumps(note) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Nothing to let go of."""
