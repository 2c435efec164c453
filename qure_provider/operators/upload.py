"""Sending studies to Qure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.context import Context

from qure_provider import settings
from qure_provider.operators.base import QureOperator
from qure_provider.operators.dry_run import ShowOnly, show_only_of, show_upload
from qure_provider.operators.work import BatchWork, open_batch
from qure_provider.retries import StepIncompleteError

if TYPE_CHECKING:
    from qure_provider.hooks.outgoing import OutgoingFile
    from qure_provider.hooks.qure import UploadFailure
    from qure_provider.ledger.ledger import ResourceRow

_PROGRESS = "acknowledged"


class QureUploadOperator(QureOperator):
    """Upload DICOM files, and return what results can be asked for.

    A retry sends only what was not acknowledged before; clearing the task after success sends everything again.

    Args:
        paths: Local files or folders (a folder is read whole, with everything below it).
        selection: Rules as ``SelectionRules.from_mapping`` takes them; None for the safe defaults.
        identity_policy: See ``settings.identity_policy``.
        kwargs: See ``QureOperator``.

    Returns:
        ``{"xray": [SOPInstanceUID, ...], "ct": [SeriesInstanceUID, ...], "files": n}``, each an XCom of its own, too,
        as in ``upload.output["ct"]``.
    """

    template_fields = ("paths", "selection", "identity_policy", "qure_conn_id")
    ui_color = "#dbe9f6"

    def __init__(
        self,
        *,
        paths: Sequence[str] | str,
        selection: Mapping[str, Any] | None = None,
        identity_policy: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"multiple_outputs": True, **kwargs})
        if not paths:
            raise ValueError("paths must name at least one file or folder")
        self.paths = paths
        self.selection = selection
        self.identity_policy = identity_policy

    def execute(self, context: Context) -> dict[str, Any]:
        """Upload the files."""
        from qure_provider.api.errors import QureRejectedError
        from qure_provider.api.model import Route
        from qure_provider.dicom.model import Fate
        from qure_provider.dicom.scan import scan, scan_files
        from qure_provider.dicom.select import SelectionRules, select
        from qure_provider.hooks.outgoing import OutgoingFile
        from qure_provider.hooks.qure import QureHook

        settings.identity_policy(self.identity_policy)
        outgoing: list[OutgoingFile] = []
        refs: dict[str, list[str]] = {route.value: [] for route in Route}
        quarantined: list[tuple[str, Exception]] = []
        for root, files in _roots([self.paths] if isinstance(self.paths, str) else self.paths):
            scanned = scan_files(root, files) if files else scan(root)
            selection = select(scanned, SelectionRules.from_mapping(self.selection or {}))
            quarantined += [
                ("file", QureRejectedError(item.reason))
                for item in scanned.passed_over
                if item.fate is Fate.QUARANTINED
            ]
            for selected in selection.selected:
                refs[selected.route.value] += [ref.uid for ref in selected.resources]
                outgoing += [
                    OutgoingFile(
                        sop_instance_uid=instance.sop_instance_uid,
                        series_instance_uid=selected.series.series_instance_uid,
                        path=str(root / instance.path),
                        size=instance.size,
                    )
                    for instance in selected.series.instances
                ]
        state = context["task_state_store"]
        recorded = state.get(_PROGRESS, default=[])
        held: set[str] = set(map(str, recorded)) if isinstance(recorded, list) else set()

        def remember(files: Sequence[OutgoingFile]) -> None:
            held.update(_mark(file) for file in files)
            state.set(_PROGRESS, [*held])

        with QureHook(self.qure_conn_id, operator=type(self).__name__) as hook:
            report = hook.upload([file for file in outgoing if _mark(file) not in held], on_acknowledged=remember)
        held.difference_update(_mark(item.file) for item in report.failed)
        state.set(_PROGRESS, [*held])
        failures = [
            *quarantined,
            *((settings.short_ref(item.file.series_instance_uid), item.error) for item in report.failed),
        ]
        if failures:
            raise StepIncompleteError("Uploading files", failures, len(outgoing) + len(quarantined))
        state.delete(_PROGRESS)
        return {**refs, "files": len(outgoing)}


class QureUploadBatchOperator(QureOperator):
    """Upload what a batch's resources still lack, and record each acknowledgement as it comes.

    Args:
        batch: One of the batches that the plan returned.
        identity_policy: See ``settings.identity_policy``.
        store_root: The store's root; None for ``[qure] store_root``.
        show_only: With ``upload`` nothing is sent: what would leave is written into the run's folder in the store.
        kwargs: See ``QureOperator``.
    """

    template_fields = ("batch", "identity_policy", "show_only", "qure_conn_id")
    ui_color = "#dbe9f6"

    def __init__(
        self,
        *,
        batch: Any,
        identity_policy: str | None = None,
        store_root: str | None = None,
        show_only: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batch = batch
        self.show_only = show_only
        self.identity_policy = identity_policy
        self.store_root = store_root

    def execute(self, context: Context) -> None:
        """Upload the batch."""
        settings.identity_policy(self.identity_policy)
        with open_batch(self.batch, self.store_root, context) as work:
            todo = [row for row in work.rows() if row.uploaded_at is None]
            if show_only_of(self.show_only) is ShowOnly.UPLOAD:
                path = show_upload(work, {row.id: _files_of(work, row) for row in todo})
                self.log.info("Dry run: nothing was sent; what would be is in the store: %s", path)
            elif todo:
                self._upload(work, todo)

    def _upload(self, work: BatchWork, todo: list[ResourceRow]) -> None:
        from qure_provider.api.model import Outcome
        from qure_provider.hooks.qure import QureHook

        held = work.ledger.acknowledged(row.id for row in todo)
        files = {row.id: _files_of(work, row) for row in todo}
        resource_of = {file: row_id for row_id, group in files.items() for file in group}
        missing = {row_id: {file.sop_instance_uid for file in group} - held[row_id] for row_id, group in files.items()}

        def record(sent: Sequence[OutgoingFile]) -> None:
            work.check()
            work.ledger.acknowledge((resource_of[file], file.sop_instance_uid) for file in sent)
            for file in sent:
                missing[resource_of[file]].discard(file.sop_instance_uid)
            done = {row_id for row_id in {resource_of[file] for file in sent} if not missing[row_id]}
            work.ledger.mark_uploaded(done)

        work.ledger.mark_uploaded(row_id for row_id, uids in missing.items() if not uids)
        outgoing = [
            file for row_id, group in files.items() for file in group if file.sop_instance_uid in missing[row_id]
        ]
        with QureHook(self.qure_conn_id, operator=type(self).__name__) as hook:
            report = hook.upload(outgoing, on_acknowledged=record)
        self.log.info(
            "Uploaded: files=%d requests=%d bytes=%d failed=%d",
            len(report.acknowledged),
            report.requests,
            report.bytes_sent,
            len(report.failed),
        )
        work.ledger.retract((resource_of[item.file], item.file.sop_instance_uid) for item in report.failed)
        first_failures: dict[int, UploadFailure] = {}
        for failure in report.failed:
            first_failures.setdefault(resource_of[failure.file], failure)
        for row_id, failure in first_failures.items():
            work.ledger.record_failure([row_id], Outcome.NOT_UPLOADED, f"upload: {failure.error}")
        if first_failures:
            refs = {row.id: settings.short_ref(row.uid) for row in todo}
            raise StepIncompleteError(
                "Uploading", ((refs[row_id], item.error) for row_id, item in first_failures.items()), len(todo)
            )


def _files_of(work: BatchWork, row: ResourceRow) -> list[OutgoingFile]:
    from qure_provider.api.model import Route
    from qure_provider.hooks.outgoing import OutgoingFile
    from qure_provider.store import open_path

    root = open_path(work.export_root)
    is_local = isinstance(root, Path)
    series = work.series_by_uid()[row.series_instance_uid].series
    return [
        OutgoingFile(
            sop_instance_uid=instance.sop_instance_uid,
            series_instance_uid=row.series_instance_uid,
            path=str(root / instance.path) if is_local else root / instance.path,
            size=instance.size,
        )
        for instance in series.instances
        if row.route is Route.CT or instance.sop_instance_uid == row.uid
    ]


def _roots(paths: Sequence[str]) -> list[tuple[Path, list[str]]]:
    """Return each folder to scan whole, with an empty list, and the folders of single files with their names."""
    folders: list[tuple[Path, list[str]]] = []
    files: dict[Path, list[str]] = {}
    for item in map(Path, paths):
        if item.is_dir():
            folders.append((item, []))
        elif item.is_file():
            files.setdefault(item.parent, []).append(item.name)
        else:
            raise FileNotFoundError(
                "One of 'paths' is neither a file nor a folder: check that it exists on this worker."
            )
    return [*folders, *files.items()]


def _mark(file: OutgoingFile) -> str:
    return hashlib.sha256(f"{file.sop_instance_uid}:{file.size}".encode()).hexdigest()[:16]
