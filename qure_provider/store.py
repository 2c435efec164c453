"""Where results are kept: a folder, or object storage, laid out so that a listing shows what is there.

::

    <root>/studies/<StudyInstanceUID>/<SeriesInstanceUID>/[<SOPInstanceUID>/]r<revision>/result.json, answer.json, files
    <root>/runs/<night>/<run>/summary.json, index.html, passed_over.jsonl, batch-000.json, ...

The store holds patient data: whoever may read it may read the results.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from airflow.sdk import BaseHook, ObjectStoragePath
from airflow.sdk.exceptions import AirflowNotFoundException

from qure_provider import settings
from qure_provider.api.model import Route
from qure_provider.ledger.database import LedgerError

AnyPath = Path | ObjectStoragePath


def open_path(location: str) -> AnyPath:
    """Return a path object for a local path, a ``file://`` URL or any URL that ``ObjectStoragePath`` understands."""
    if location.startswith("file://"):
        return Path(location.removeprefix("file://"))
    return ObjectStoragePath(location) if "://" in location else Path(location)


def ledger_url(root: str) -> str:
    """Return the SQLAlchemy URL of the ledger that belongs to a store.

    Args:
        root: The store's root.

    Raises:
        LedgerError: If the store is not local and no ledger connection is set (SQLite needs a local disk); if that
            connection does not exist; if the store holds results and its SQLite file is gone: a new one would not know
            what was sent and delivered.
    """
    if conn_id := settings.ledger_conn_id():
        try:
            uri = BaseHook.get_connection(conn_id).get_uri()
        except AirflowNotFoundException:
            raise LedgerError(
                f"There is no connection {conn_id!r}, which [qure] ledger_conn_id names: create it in Airflow."
            ) from None
        return uri.replace("postgres://", "postgresql+psycopg2://", 1)
    path = open_path(root)
    if not isinstance(path, Path):
        raise LedgerError(
            "A store on object storage needs the ledger on PostgreSQL: set [qure] ledger_conn_id to a connection."
        )
    path.mkdir(parents=True, exist_ok=True)
    ledger, results = path.absolute() / "ledger.sqlite3", path / "studies"
    is_there = ledger.exists() and ledger.stat().st_size > 0
    if not is_there and results.exists() and any(results.iterdir()):
        raise LedgerError(
            "The store holds results, but its ledger is gone: put ledger.sqlite3 back, or name an empty store. With a "
            "new ledger everything would be sent, delivered and told again."
        )
    return f"sqlite:///{ledger}"


def result_folder(study_instance_uid: str, series_instance_uid: str, uid: str, route: Route, revision: int) -> str:
    """Return where a resource's result lies, relative to the store's root. The UIDs must have been checked."""
    image = f"/{uid}" if route is Route.XRAY else ""
    return f"studies/{study_instance_uid}/{series_instance_uid}{image}/r{revision}"


_SCRATCH = ".scratch"
_SCRATCH_LIVES = 86_400.0


class Store:
    """Files under one root; each is written whole or not at all.

    Args:
        root: A local path or a URL that ``ObjectStoragePath`` understands.
    """

    def __init__(self, root: str) -> None:
        self.root = open_path(root)

    def path(self, relative: str) -> AnyPath:
        """Return the path object of a file in the store."""
        return self.root / relative

    def exists(self, relative: str) -> bool:
        """Return whether a file is there."""
        return bool(self.path(relative).exists())

    def read_json(self, relative: str) -> Any:
        """Return a JSON file's content.

        Raises:
            FileNotFoundError: If it is not there.
        """
        return json.loads(self.path(relative).read_text(encoding="utf-8"))

    def write_json(self, relative: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file."""
        self.write_text(relative, json.dumps(value, indent=1) + "\n")

    def write_text(self, relative: str, text: str) -> None:
        """Write a text file."""
        with self.scratch() as folder:
            local = folder / "text"
            local.write_text(text, encoding="utf-8")
            self.put(local, relative)

    def put(self, local: Path, relative: str) -> None:
        """Move a finished local file into the store.

        Args:
            local: The file; it is gone afterwards. From ``scratch()``, a local store only renames it.
            relative: Where it shall lie.
        """
        target = self.path(relative)
        if isinstance(target, Path):
            target.parent.mkdir(parents=True, exist_ok=True)
            with local.open("rb") as stream:
                os.fsync(stream.fileno())
            local.replace(target)
            return
        with local.open("rb") as source, target.open("wb") as sink:  # type: ignore[no-untyped-call]
            shutil.copyfileobj(source, sink, 1 << 20)
        local.unlink()

    def remove(self, relative: str) -> None:
        """Remove a file; one that is not there is no error."""
        self.path(relative).unlink(missing_ok=True)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a temporary local folder, on the store's own disk where that is local."""
        if isinstance(self.root, Path):
            parent = self.root / _SCRATCH
            parent.mkdir(parents=True, exist_ok=True)
            folder = tempfile.mkdtemp(dir=parent)
        else:
            folder = tempfile.mkdtemp(prefix="qure-")
        try:
            yield Path(folder)
        finally:
            shutil.rmtree(folder)

    def sweep(self) -> int:
        """Remove temporary folders that killed processes left a day ago or longer; return how many."""
        if not isinstance(self.root, Path):
            return 0
        swept = 0
        for path in (self.root / _SCRATCH).glob("*"):
            with suppress(FileNotFoundError):  # another plan sweeps, too
                if path.stat().st_mtime < time.time() - _SCRATCH_LIVES:
                    shutil.rmtree(path)
                    swept += 1
        return swept
