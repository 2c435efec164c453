"""A store of SIMULATED nights, and accounts some of which may see some DAGs only."""

import json

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

from qure_provider import settings
from qure_provider.api.model import Outcome, ResultAnswer, Route
from qure_provider.dicom.model import Identity, Instance, SelectedSeries, Series
from qure_provider.ledger.deliveries import NewParcel, ParcelKind, Wanted
from qure_provider.ledger.ledger import Ledger
from qure_provider.reports.summary import Summary, SummaryRow
from qure_provider.store import ledger_url

MAY_SEE = {"radiology": {"qure_nightly", "qure_on_demand"}, "research": {"research_nightly"}, "nobody": set()}


class Accounts(SimpleAuthManager):
    def is_authorized_dag(self, *, method, user, access_entity=None, details=None):
        return method == "GET" and details is not None and details.id in MAY_SEE[user.username]


def token_of(name):
    from airflow.api_fastapi.app import get_auth_manager

    return get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=name, role="viewer", teams=None))


NIGHT, RUN = "2026-11-20", "qure_nightly__scheduled__process_export"
STUDY = "studies/1.2.3/1.2.3.4/1.2.3.4.5/r1"
STUDY_REF, RESOURCE_REF = settings.short_ref("1.2.3"), settings.short_ref("1.2.3.4.5")
PATIENT = ("SIM-1", "SIMULATED^ONE", "SIM-A1")
PNG = b"\x89PNG\r\n\x1a\nSIMULATED"


def row(resource="aaaaaaaaaa", **values):
    plain = {
        "study": STUDY_REF,
        "resource": resource,
        "route": "xray",
        "modality": "CR",
        "product": "qxr",
        "outcome": "ready",
        "is_resolved": True,
        "reason": "",
        "triage": "Routine",
        "meaning": "no finding of this product",
        "impression": "SIMULATED: nothing found",
        "doubt": "",
        "revision": 1,
        "why": "new",
        "folder": STUDY,
        "files": 1,
        "image": f"{STUDY}/sc_thumbnail.png",
        "seconds_to_ready": 3.5,
    }
    return SummaryRow(**plain | values)


def summary(*rows, **values):
    plain = {
        "night": NIGHT,
        "dag_id": "qure_nightly",
        "run_id": "scheduled",
        "began_at": "2026-11-20T02:00:00.123456+05:30",
        "finished_at": "2026-11-20T02:10:00+05:30",
        "completeness": "nothing was added for the quiet time",
        "counts": {"found": 3, "selected": 1, "not_selected": 1, "duplicate": 0, "quarantined": 1, "reasons": {"x": 2}},
        "rows": rows or (row(),),
        "alerts": {"sent": 0, "failed": 0},
        "deliveries": {},
        "problems": (),
    }
    return Summary(**plain | values)


class NightStore:
    """A store on disk, filled as the tasks fill it."""

    def __init__(self, root):
        self.root = root

    def write(self, relative, content):
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    def add_run(self, night=NIGHT, name=RUN, content=None):
        content = content or summary(night=night)
        self.write(f"runs/{night}/{name}/summary.json", content.to_json())
        self.write(f"runs/{night}/{name}/passed_over.jsonl", b'{"path": "IM 1", "reason": "not DICOM"}\n')
        return f"/qure/runs/{night}/{name}/"

    def add_ledger(self, night=NIGHT, name=RUN):
        """The run's part of the ledger: a result that a RIS refused, and that the PACS took."""
        with Ledger.open(ledger_url(str(self.root)), create=True) as ledger:
            patient, person, accession = PATIENT
            identity = Identity("1.2.3", patient, "SIM", accession, "19700101", "F", person)
            image = Instance("1.dcm", 100, 1.0, "1.2.3.4.5", "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.1.2.1")
            series = SelectedSeries(Series(identity, "1.2.3.4", "CR", (image,)), Route.XRAY)
            run = ledger.begin_run(
                dag_id="qure_nightly",
                run_id="scheduled",
                group_id="process_export",
                clear_number=0,
                night=night,
                conn_id="qure_default",
                folder=f"runs/{night}/{name}",
                deadline=0.0,
                completeness="quiet",
            )
            (entry,) = ledger.assess([series])
            manifest = f"{run.folder}/batch-000.json"
            ledger.replace_plan(run, batches_of_rows=[(Route.XRAY, manifest, entry.rows)], done=[], counts={})
            (row,) = ledger.rows_of_run(run.id)
            ledger.mark_uploaded([row.id])
            ledger.record_answer(row.id, ResultAnswer(Outcome.READY, usecase="qxr"), settled=True)
            parcel = NewParcel(ParcelKind.OBJECTS, row.uid, "digest", "1.2.3", "qxr", (row.id,), urgent=False)
            ledger.deliveries.enqueue(run.id, parcel, [Wanted("pacs"), Wanted("ris")])
            (to_pacs,) = ledger.deliveries.claim("me", destination="pacs")
            ledger.deliveries.delivered(to_pacs, {})
            (to_ris,) = ledger.deliveries.claim("me", destination="ris")
            ledger.deliveries.dead(to_ris, "the receiver refused it (AR)")

    def add_result(self, folder=STUDY, assets=None):
        files = assets or {"sc_thumbnail.png": ("sc_thumbnail", "image/png", PNG)}
        named = [
            {"kind": kind, "name": name, "media": media, "size": len(content), "sha256": ""}
            for name, (kind, media, content) in files.items()
        ]
        self.write(
            f"{folder}/result.json",
            {
                "schema": 1,
                "notice": "",
                "uid": "1.2.3.4.5",
                "route": "xray",
                "revision": 1,
                "study_instance_uid": "1.2.3",
                "series_instance_uid": "1.2.3.4",
                "outcome": "ready",
                "usecase": "qxr",
                "triage": "Routine",
                "meaning": "no finding of this product",
                "report": {"impression": "SIMULATED", "findings": "", "findings_list": [], "lines": []},
                "scores": {"opacity": 0.25},
                "decisions": {"opacity": False, "nodule": True},
                "model_version": "not stated by the service",
                "assets": named,
                "reason": "",
            },
        )
        self.write(f"{folder}/answer.json", {"success": True})
        for name, (_, _, content) in files.items():
            if "/" not in name:
                self.write(f"{folder}/{name}", content)
