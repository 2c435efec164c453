"""Sending studies to Qure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.context import Context

from qure_provider import settings
from qure_provider.operators.base import QureOperator
from qure_provider.operators.dry_run import ShowOnly, show_only_of, show_upload
from qure_provider.operators.reading import scan_export
from qure_provider.operators.sending import Sender, as_it_is, instances_of, sender_for
from qure_provider.operators.work import BatchWork, open_batch
from qure_provider.retries import StepIncompleteError

if TYPE_CHECKING:
    from qure_provider.api.errors import QureError
    from qure_provider.hooks.outgoing import HeaderSpool, OutgoingFile
    from qure_provider.ledger.ledger import ResourceRow

ACCEPTED = "accepted"
"""The key of the XCom that says what a failed upload did send."""

_PROGRESS = "acknowledged"
_NO_WAY_BACK = (
    "QureUploadOperator alone keeps no way back from pseudonyms to patients, so nothing was sent. Use the task group "
    "process_export, which de-identifies, or set identity_policy='identified' on this task."
)


class QureUploadOperator(QureOperator):
    """Upload DICOM files, and return what results can be asked for.

    A retry sends only what was not acknowledged before; clearing the task after success sends everything again. What
    cannot be sent fails the task after everything else went, so that nothing goes on with a part of it; the XCom
    ``accepted`` then has what the service took, in the shape of what a success returns: images, and whole CT series.
    In a folder, a file that is not DICOM and has the name of something else (``.txt``) is only passed over. It fails,
    too, where there is nothing to send. It sends files as they are: de-identification needs the ledger that
    ``process_export`` keeps.

    Args:
        paths: Local files or folders (a folder is read whole, with everything below it).
        selection: Rules as ``SelectionRules.from_mapping`` takes them; None for the safe defaults.
        identity_policy: See ``settings.identity_policy``; anything but ``identified`` is refused.
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
        from qure_provider.dicom.reasons import may_be_dicom
        from qure_provider.dicom.select import SelectionRules, select
        from qure_provider.hooks.qure import QureHook

        if settings.identity_policy(self.identity_policy) is not settings.IdentityPolicy.IDENTIFIED:
            raise settings.IdentityPolicyError(_NO_WAY_BACK)
        outgoing: list[OutgoingFile] = []
        refs: dict[str, list[str]] = {route.value: [] for route in Route}
        quarantined: list[tuple[str, Exception]] = []
        passed_over: Counter[str] = Counter()
        for root, files in _roots([self.paths] if isinstance(self.paths, str) else self.paths):
            scanned = scan_export(root, files)
            selection = select(scanned, SelectionRules.from_mapping(self.selection or {}))
            for item in (*scanned.passed_over, *selection.passed_over):
                if item.fate is Fate.QUARANTINED and (files or may_be_dicom(item.path, item.reason)):
                    quarantined.append(("file", QureRejectedError(item.reason)))
                else:
                    passed_over[item.reason] += 1
            for selected in selection.selected:
                refs[selected.route.value] += [ref.uid for ref in selected.resources]
                series = selected.series
                outgoing += [as_it_is(root, series.series_instance_uid, instance) for instance in series.instances]
        for reason, number in passed_over.items():
            self.log.info("Passed over: files=%d reason=%s", number, reason)
        if not outgoing and not quarantined:
            reasons = "; ".join(f"{number} {reason}" for reason, number in passed_over.items())
            raise QureRejectedError(
                f"There is nothing to upload: check 'paths' and 'selection' ({reasons or 'no files'})."
            )
        state = context["task_state_store"]
        recorded = state.get(_PROGRESS, default=[])
        held: set[str] = set(map(str, recorded)) if isinstance(recorded, list) else set()

        def remember(files: Sequence[OutgoingFile]) -> None:
            held.update(_mark(file) for file in files)
            state.set(_PROGRESS, [*held])

        def forget(files: Sequence[OutgoingFile]) -> None:
            held.difference_update(_mark(file) for file in files)
            state.set(_PROGRESS, [*held])

        missing = [file for file in outgoing if _mark(file) not in held]
        with QureHook(self.qure_conn_id, operator=type(self).__name__) as hook:
            report = hook.upload(missing, on_acknowledged=remember, on_doubted=forget)
        held.difference_update(_mark(item.file) for item in report.failed)
        acknowledged = Counter(file.series_instance_uid for file in outgoing if _mark(file) in held)
        short = {
            uid: error
            for uid in refs[Route.CT.value]
            if (error := _short(report.held.get(uid), acknowledged[uid])) is not None
        }
        held.difference_update(_mark(file) for file in outgoing if file.series_instance_uid in short)
        state.set(_PROGRESS, [*held])
        failures = [
            *quarantined,
            *((settings.short_ref(item.file.series_instance_uid), item.error) for item in report.failed),
            *((settings.short_ref(uid), error) for uid, error in short.items()),
        ]
        if failures:
            sent = [file for file in outgoing if _mark(file) in held]
            context["ti"].xcom_push(key=ACCEPTED, value=_accepted(refs, outgoing, sent))
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
        from qure_provider.hooks.outgoing import HeaderSpool

        policy = settings.identity_policy(self.identity_policy)
        with open_batch(self.batch, self.store_root, context) as work:
            todo = [row for row in work.rows() if row.uploaded_at is None]
            if show_only_of(self.show_only) is ShowOnly.UPLOAD:
                path = show_upload(work, todo, policy)
                self.log.info("Dry run: nothing was sent; what would be is in the store: %s", path)
            elif todo:
                with HeaderSpool() as spool:
                    self._upload(work, todo, sender_for(policy), spool)

    def _upload(self, work: BatchWork, todo: list[ResourceRow], sender: Sender, spool: HeaderSpool) -> None:
        from qure_provider.api.errors import QureRejectedError
        from qure_provider.api.model import Route
        from qure_provider.hooks.qure import QureHook

        work.ledger.pseudonyms.begin([row.id for row in todo], sender.key_id)
        held = work.ledger.acknowledged(row.id for row in todo)
        planned = {row.id: {instance.sop_instance_uid for instance in instances_of(work.batch, row)} for row in todo}
        missing = {row_id: uids - held[row_id] for row_id, uids in planned.items()}
        work.ledger.mark_uploaded(row_id for row_id, uids in missing.items() if planned[row_id] and not uids)
        work.ledger.mark_sent_in_parts(
            row.id for row in todo if row.route is Route.CT and (held[row.id] or row.outcome is not None)
        )
        source_of: dict[OutgoingFile, tuple[int, str]] = {}
        series: dict[int, str] = {}
        failures: dict[int, Exception] = {
            row_id: QureRejectedError("the plan names no file of it: run the plan again")
            for row_id, uids in planned.items()
            if not uids
        }

        def coming() -> Iterator[OutgoingFile]:
            for row, prepared in sender.prepare(work, [(row, missing[row.id]) for row in todo], spool):
                if isinstance(prepared, Exception):
                    failures[row.id] = prepared
                    continue
                source_of.update((file, (row.id, uid)) for uid, file in prepared)
                if row.route is Route.CT:
                    series[row.id] = prepared[0][1].series_instance_uid
                yield from (file for _, file in prepared)

        def record(sent: Sequence[OutgoingFile]) -> None:
            work.check()
            work.ledger.acknowledge(source_of[file] for file in sent)
            for row_id, uid in map(source_of.__getitem__, sent):
                missing[row_id].discard(uid)
            done = {row_id for row_id in {source_of[file][0] for file in sent} if not missing[row_id]}
            work.ledger.mark_uploaded(done - series.keys())

        def doubt(files: Sequence[OutgoingFile]) -> None:
            work.check()
            work.ledger.retract(source_of[file] for file in files)
            for row_id, uid in map(source_of.__getitem__, files):
                missing[row_id].add(uid)

        with QureHook(self.qure_conn_id, operator=type(self).__name__) as hook:
            report = hook.upload(coming(), on_acknowledged=record, on_doubted=doubt)
        work.check()
        self.log.info(
            "Uploaded: files=%d requests=%d bytes=%d failed=%d refused=%d",
            len(report.acknowledged),
            report.requests,
            report.bytes_sent,
            len(report.failed),
            len(failures),
        )
        gone = {source_of[item.file] for item in report.failed}
        for failure in report.failed:
            row_id, uid = source_of[failure.file]
            missing[row_id].add(uid)
            failures.setdefault(row_id, failure.error)
        if report.failed:  # the service stays away: what was not even tried has failed for the same reason
            failures |= {
                row_id: report.failed[-1].error for row_id, uids in missing.items() if uids and row_id not in failures
            }
        for row_id, series_uid in series.items():
            if short := _short(report.held.get(series_uid), len(planned[row_id]) - len(missing[row_id])):
                failures[row_id] = short
                gone |= {(row_id, uid) for uid in planned[row_id]}
        work.ledger.retract(gone)
        work.ledger.mark_uploaded(row_id for row_id in series if not missing[row_id] and row_id not in failures)
        for row_id, error in failures.items():
            work.ledger.mark_not_uploaded([row_id], f"upload: {error}")
        if failures:
            refs = {row.id: settings.short_ref(row.uid) for row in todo}
            raise StepIncompleteError(
                "Uploading", ((refs[row_id], error) for row_id, error in failures.items()), len(todo)
            )


def _accepted(
    refs: Mapping[str, Sequence[str]], outgoing: Sequence[OutgoingFile], sent: Sequence[OutgoingFile]
) -> dict[str, Any]:
    """Return of which images, and of which whole series, the service has what a result can be asked for."""
    from qure_provider.api.model import Route

    images = {file.sop_instance_uid for file in sent}
    lacking = {file.series_instance_uid for file in outgoing if file.sop_instance_uid not in images}
    return {
        Route.XRAY.value: [uid for uid in refs[Route.XRAY.value] if uid in images],
        Route.CT.value: [uid for uid in refs[Route.CT.value] if uid not in lacking],
        "files": len(sent),
    }


def _short(held: int | None, acknowledged: int) -> QureError | None:
    """Say what is wrong where the service holds fewer images of a series than it acknowledged, now or before.

    Which ones it lost it does not say, so all of the series is sent again.
    """
    from qure_provider.api.errors import QureTransientError

    if held is None or held >= acknowledged:
        return None
    return QureTransientError(
        f"The service says that it holds {held} images of a series of which it acknowledged {acknowledged}, so it is "
        "not computed; the next try sends all of it again."
    )


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
