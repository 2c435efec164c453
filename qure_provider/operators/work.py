"""A batch as a task works on it: the store, the ledger, the manifest and the lease, opened together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.context import Context

from qure_provider import settings
from qure_provider.ledger.batch_ref import BatchRef

if TYPE_CHECKING:
    from qure_provider.dicom.model import Batch
    from qure_provider.ledger.ledger import Ledger, ResourceRow, RunRow
    from qure_provider.store import Store

MANIFEST_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class BatchWork:
    """An open batch.

    Attributes:
        store: The store.
        ledger: The ledger.
        run: The run that it belongs to.
        batch_id: Its key in the ledger.
        owner: The try of the task that holds its lease.
        batch: Its content.
        export_root: Where its files lie.
    """

    store: Store
    ledger: Ledger
    run: RunRow
    batch_id: int
    owner: str
    batch: Batch
    export_root: str

    def rows(self) -> list[ResourceRow]:
        """Return what is recorded of its resources."""
        return self.ledger.rows_of_batch(self.batch_id)

    def check(self) -> None:
        """Raise ``LeaseLostError`` if another try has taken the batch over."""
        self.ledger.check_lease(self.batch_id, self.owner)


@contextmanager
def open_batch(value: Any, store_root: str | None, context: Context) -> Iterator[BatchWork]:
    """Open a batch and take its lease.

    Args:
        value: What XCom carried: see ``BatchRef``.
        store_root: The store's root; None for the configured one.
        context: The task's context.

    Raises:
        ValueError: If ``value`` is no batch.
        LeaseLostError: If the night was planned anew since.
        ManifestError: If the manifest is damaged.
    """
    from qure_provider.dicom.manifest import load_batch
    from qure_provider.ledger.ledger import Ledger
    from qure_provider.store import Store, ledger_url

    ref = BatchRef.from_xcom(value)
    root = store_root or settings.store_root()
    store = Store(root)
    owner = str(context["ti"].id)
    with Ledger.open(ledger_url(root)) as ledger:
        ledger.take_lease(ref.batch_id, owner)
        manifest = store.read_json(ledger.manifest_of_batch(ref.batch_id))
        yield BatchWork(
            store=store,
            ledger=ledger,
            run=ledger.run_of_batch(ref.batch_id),
            batch_id=ref.batch_id,
            owner=owner,
            batch=load_batch(manifest["batch"]),
            export_root=manifest["export_root"],
        )


def manifest_content(batch: Batch, export_root: str) -> Mapping[str, Any]:
    """Return what a batch's manifest file holds."""
    from qure_provider.dicom.manifest import dump_batch

    return {"schema": MANIFEST_SCHEMA, "export_root": export_root, "batch": dump_batch(batch)}
