"""Reading an export and deciding what travels together."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.context import Context

from qure_provider import settings
from qure_provider.delivery.rules import destinations_of, rules_from
from qure_provider.ledger.batch_ref import BatchRef
from qure_provider.nights import MAX_NAME, in_night, night_of, safe_name
from qure_provider.operators.base import QureOperator, as_bool
from qure_provider.operators.dry_run import ShowOnly, show_only_of
from qure_provider.operators.reading import scan_export, select_sendable
from qure_provider.operators.sending import Sender, instances_of, sender_for
from qure_provider.operators.work import manifest_content

if TYPE_CHECKING:
    from qure_provider.api.model import Route
    from qure_provider.dicom.model import Batch, PassedOver, Scan, SelectedSeries, Selection
    from qure_provider.ledger.ledger import Ledger, Owed, PlannedSeries, ResourceRow, RunRow
    from qure_provider.store import Store

log = logging.getLogger(__name__)

OWED_DAYS = 7


class QurePlanOperator(QureOperator):
    """Scan an export, select what Qure can read, compare it with what is known, and divide the rest into batches.

    Every file is accounted for: ``found = selected + not selected + duplicate + quarantined``, each of the last three
    with a reason in ``passed_over.jsonl``; what cannot be de-identified, and is to be, is quarantined. What an earlier
    run finished is not sent again; what one left waiting is waited for; what grew is a new revision, and a part of what
    the service holds is not sent (the summary names it). What earlier nights still owe (up to seven days back) is
    waited for, too, or uploaded if it never was and its export is still there: only what goes to the same
    destinations, and is sent under the same identity policy where another DAG planned it. What the run itself waited
    for before it was cleared stays its own.

    Args:
        export: The export's folder: a path or a URL that ``ObjectStoragePath`` understands; ``{night}`` in it becomes
            the night's name, ``{night:YYYYMMDD}`` its date written so.
        files: Paths relative to ``export``, to take only these.
        selection: Rules as ``SelectionRules.from_mapping`` takes them, or their JSON; None for the safe defaults.
        identity_policy: See ``settings.identity_policy``; checked here, with the key that it may need, so that a
            night without fails at once.
        store_root: The store's root; None for ``[qure] store_root``.
        max_batches: Into how many batches at most; None for ``[qure] max_batches``.
        wait_seconds: How long results are waited for, in seconds, from the plan's beginning on.
        recompute: Whether to send and compute again what earlier runs finished.
        catch_up: Whether to take on, too, what earlier runs left waiting or could not upload.
        deliver_to: Where the run's results go; what goes elsewhere is not taken on.
        rules: The same, as ``delivery.rules.rules_from`` takes it.
        show_only: With ``upload`` nothing is planned to be sent: what is new takes the place of nothing, and what an
            earlier run waits for is left to that. A dry run of either kind takes on nothing of other runs, nor they of
            it.
        completeness: How the export was judged complete: what ``QureExportSensor`` returned.
        run_group: The task group that this plan belongs to.
        kwargs: See ``QureOperator``.

    Returns:
        A list of batches, each as ``BatchRef.to_xcom`` has it.
    """

    template_fields = (
        "export",
        "files",
        "selection",
        "identity_policy",
        "recompute",
        "completeness",
        "deliver_to",
        "show_only",
        "qure_conn_id",
    )
    ui_color = "#e3f0e8"

    def __init__(
        self,
        *,
        export: str,
        files: Sequence[str] | str | None = None,
        selection: Mapping[str, Any] | str | None = None,
        identity_policy: str | None = None,
        store_root: str | None = None,
        max_batches: int | None = None,
        wait_seconds: float = 8 * 3600,
        recompute: bool | str = False,
        catch_up: bool = True,
        deliver_to: Sequence[str] | str = (),
        rules: Sequence[Mapping[str, Any]] = (),
        show_only: str | None = None,
        completeness: str | None = None,
        run_group: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_batches is not None and max_batches < 2:
            raise ValueError("max_batches must be 2 or more: X-ray and CT travel apart")
        if wait_seconds <= 0:
            raise ValueError("wait_seconds must be more than 0")
        rules_from(deliver_to, rules)
        if isinstance(selection, Mapping):
            from qure_provider.dicom.select import SelectionRules

            SelectionRules.from_mapping(selection)
        self.export = export
        self.files = files
        self.selection = selection
        self.identity_policy = identity_policy
        self.store_root = store_root
        self.max_batches = max_batches
        self.wait_seconds = wait_seconds
        self.recompute = recompute
        self.catch_up = catch_up
        self.deliver_to = deliver_to
        self.rules = list(rules)
        self.show_only = show_only
        self.completeness = completeness
        self.run_group = run_group

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Plan the night."""
        from qure_provider.ledger.ledger import Ledger
        from qure_provider.store import Store, ledger_url

        night = night_of(context, settings.timezone())
        export = in_night(self.export, night)
        root = self.store_root or settings.store_root()
        store = Store(root)
        store.sweep()
        dag_run = context["dag_run"]
        planner = str(context["ti"].id)
        with Ledger.open(ledger_url(root), create=True) as ledger:
            # First of all, so that the summary of a plan that fails finds none and not the one before a clear.
            run = ledger.begin_run(
                dag_id=dag_run.dag_id,
                run_id=dag_run.run_id,
                group_id=self.run_group,
                clear_number=dag_run.clear_number or 0,
                night=night,
                conn_id=self.qure_conn_id,
                folder=run_folder(night, dag_run.dag_id, dag_run.run_id, self.run_group),
                deadline=time.time() + self.wait_seconds,
                completeness=self.completeness or "not judged",
                planner=planner,
            )
            sender = sender_for(settings.identity_policy(self.identity_policy))
            scanned, selection = self._read(export, night, ledger, sender)
            show_only = show_only_of(self.show_only)
            entries = ledger.assess(
                selection.selected,
                conn_id=self.qure_conn_id,
                recompute=as_bool(self.recompute),
                only_shown=show_only is ShowOnly.UPLOAD,
            )
            counts = _counts(scanned, selection, entries)
            counts |= {"dry_run": show_only.value, "plan": f"{run.folder}/plan-{planner[-8:]}.json"}
            store.write_json(
                counts["plan"],
                {
                    "export": export,
                    "is_whole": not _as_list(self.files),
                    "has_rules": _as_mapping(self.selection) not in ({}, settings.selection()),
                },
            )
            refs = self._divide(store, ledger, run, entries, export, counts, planner)
            _write_passed_over(store, run, [*scanned.passed_over, *selection.passed_over])
        self.log.info(
            "Planned: files=%d series=%d resources=%d batches=%d quarantined=%d",
            counts["found"],
            counts["series"],
            counts["resources"],
            len(refs),
            counts["quarantined"],
        )
        return [ref.to_xcom() for ref in refs]

    def _read(self, export: str, night: str, ledger: Ledger, sender: Sender) -> tuple[Scan, Selection]:
        from qure_provider.dicom.select import SelectionRules
        from qure_provider.store import open_path

        folder = open_path(export)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no folder {export!r} (night {night}): check 'export', [qure] timezone, and whether the PACS "
                "wrote it."
            )
        scanned = scan_export(folder, _as_list(self.files))
        known = ledger.known_series(series.series_instance_uid for series in scanned.series)
        rules = SelectionRules.from_mapping(_as_mapping(self.selection))
        return select_sendable(folder, scanned, rules, known, sender)

    def _divide(
        self,
        store: Store,
        ledger: Ledger,
        run: RunRow,
        entries: list[PlannedSeries],
        export: str,
        counts: dict[str, Any],
        planner: str,
    ) -> list[BatchRef]:
        from qure_provider.dicom.pack import pack_batches
        from qure_provider.ledger.ledger import Terms, Why

        show_only = show_only_of(self.show_only)
        left_alone = {Why.DONE, Why.WAITING} if show_only is ShowOnly.UPLOAD else {Why.DONE}
        open_entries = {
            entry.selected.series.series_instance_uid: entry
            for entry in entries
            if any(row.why not in left_alone for row in entry.rows)
        }
        done = [row for entry in entries for row in entry.rows if row.why in left_alone]
        limit = self.max_batches or settings.max_batches()
        parts: list[tuple[Batch, str, list[ResourceRow]]] = [
            (
                batch,
                export,
                [
                    row
                    for selected in batch.series
                    for row in open_entries[selected.series.series_instance_uid].rows
                    if row.why not in left_alone
                ],
            )
            for batch in pack_batches([entry.selected for entry in open_entries.values()], limit)
        ]
        terms = Terms(settings.identity_policy(self.identity_policy).value, self._destinations())
        counts["terms"] = asdict(terms)
        if show_only is not ShowOnly.UPLOAD:
            since = run.began_at - OWED_DAYS * 86_400
            only_own = not self.catch_up or show_only is not ShowOnly.NO
            owed = ledger.owed_manifests(run.id, terms=terms, since=since, only_own=only_own)
            tonight = {row.uid for entry in entries for row in entry.rows}
            counts["left"] = sorted(run_id for run_id, uids in owed.left.items() if uids - tonight)
            parts += _taken_on(store, owed, counts, besides=tonight)
        counts["carried_over"] = sum(len(rows) for _, _, rows in parts) + len(done) - counts["resources"]
        recorded = []
        for number, (batch, export_root, rows) in enumerate(parts):
            # A name of its own: an older try of the plan may still be writing.
            manifest = f"{run.folder}/batch-{number:03d}-{planner[-8:]}.json"
            store.write_json(manifest, manifest_content(batch, export_root))
            recorded.append((batch.route, manifest, rows))
        ids = ledger.replace_plan(run, batches_of_rows=recorded, done=done, counts=counts, planner=planner)
        return [
            BatchRef(
                batch_id=batch_id,
                route=batch.route.value,
                series=len(batch.series),
                resources=len(rows),
                size=batch.size,
                label=f"{batch.route.value}-{number:03d}",
            )
            for number, (batch_id, (batch, _, rows)) in enumerate(zip(ids, parts, strict=True))
        ]

    def _destinations(self) -> str:
        names = sorted(destinations_of(rules_from(self.deliver_to, self.rules)))
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]


def run_folder(night: str, dag_id: str, run_id: str, group_id: str) -> str:
    """Return where a run's own files lie, relative to the store's root."""
    name = "__".join([dag_id, run_id, *([group_id] if group_id else [])])
    is_cut = len(name) > MAX_NAME
    digest = f"-{hashlib.sha256(name.encode()).hexdigest()[:12]}" if is_cut else ""
    return f"runs/{safe_name(night)}/{safe_name(name)}{digest}"


def _taken_on(
    store: Store, recorded: Owed, counts: dict[str, Any], *, besides: set[str]
) -> list[tuple[Batch, str, list[ResourceRow]]]:
    """Return one batch a route and export of what earlier runs left; what is yet to be sent only if that is there.

    What is in a manifest that cannot be read, or that names only a part of the images, is counted as lost.
    """
    from qure_provider.dicom.manifest import ManifestError, load_batch
    from qure_provider.dicom.model import Batch

    series: dict[tuple[Route, str], list[SelectedSeries]] = {}
    rows: dict[tuple[Route, str], list[ResourceRow]] = {}
    for manifest, rows_of_it in recorded.by_manifest.items():
        owed = [row for row in rows_of_it if row.uid not in besides]
        if not owed:
            continue
        try:
            content = store.read_json(manifest)
            root, batch = content["export_root"], load_batch(content["batch"])
        except (FileNotFoundError, ValueError, KeyError, ManifestError):
            counts["lost"] += [settings.short_ref(row.uid) for row in owed]
            continue
        lost = {row.id for row in owed if row.is_to_be_sent and len(instances_of(batch, row)) < row.instances}
        counts["lost"] += [settings.short_ref(row.uid) for row in owed if row.id in lost]
        owed = [row for row in owed if row.id not in lost]
        if any(row.is_to_be_sent for row in owed) and not _is_there(root):
            owed = [row for row in owed if not row.is_to_be_sent]
        if owed:
            wanted = {row.series_instance_uid for row in owed}
            rows.setdefault((batch.route, root), []).extend(owed)
            series.setdefault((batch.route, root), []).extend(
                item for item in batch.series if item.series.series_instance_uid in wanted
            )
    return [(Batch(route, tuple(items)), root, rows[route, root]) for (route, root), items in series.items()]


def _is_there(root: str) -> bool:
    """Whether an earlier run's export can be read; one that cannot must not keep tonight's from being sent."""
    from qure_provider.store import open_path

    try:
        return bool(open_path(root).is_dir())
    except Exception as error:  # each kind of storage has its own
        log.warning("An earlier run's export cannot be reached: error=%s", type(error).__name__)
        return False


def _counts(scanned: Scan, selection: Selection, entries: list[PlannedSeries]) -> dict[str, Any]:
    from qure_provider.dicom.model import Fate
    from qure_provider.dicom.reasons import may_be_dicom

    passed_over = [*scanned.passed_over, *selection.passed_over]
    fates = Counter(item.fate for item in passed_over)
    return {
        "found": scanned.found,
        "selected": sum(len(item.series.instances) for item in selection.selected),
        "not_selected": fates[Fate.NOT_SELECTED],
        "duplicate": fates[Fate.DUPLICATE],
        "quarantined": fates[Fate.QUARANTINED],
        "reasons": dict(sorted(Counter(f"{item.fate.value}: {item.reason}" for item in passed_over).items())),
        "studies": len({item.series.identity.study_instance_uid for item in selection.selected}),
        "series": len(selection.selected),
        "resources": sum(len(entry.rows) for entry in entries),
        "bytes": sum(item.series.size for item in selection.selected),
        "warnings": dict(sorted(Counter(_warnings(selection.selected)).items())),
        "unfit": sum(item.fate is Fate.QUARANTINED and may_be_dicom(item.path, item.reason) for item in passed_over),
        "lost": [],
        "shrunk": [
            settings.short_ref(entry.selected.series.series_instance_uid) for entry in entries if entry.has_shrunk
        ],
    }


def _warnings(selected: Sequence[SelectedSeries]) -> list[str]:
    return [warning for item in selected for warning in item.series.warnings]


def _write_passed_over(store: Store, run: RunRow, passed_over: list[PassedOver]) -> None:
    lines = (
        json.dumps(
            {
                "path": item.path,
                "fate": item.fate.value,
                "reason": item.reason,
                "size": item.size,
                "series_instance_uid": item.series_instance_uid,
            }
        )
        for item in passed_over
    )
    store.write_text(f"{run.folder}/passed_over.jsonl", "".join(f"{line}\n" for line in lines))


def _as_list(value: Sequence[str] | str | None) -> list[str]:
    if not value:
        return []
    return [line for line in value.splitlines() if line.strip()] if isinstance(value, str) else list(value)


def _as_mapping(value: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    if isinstance(value, str):
        parsed = json.loads(value) if value.strip() not in {"", "None"} else {}
        if not isinstance(parsed, dict):
            raise ValueError("selection must be a JSON object")
        return parsed
    return value or {}
