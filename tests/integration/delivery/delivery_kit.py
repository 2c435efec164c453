"""A hospital with receivers: a folder, a RIS that speaks MLLP, and a night whose results only wait to be delivered."""

import hashlib
import json
import shutil
from types import SimpleNamespace

from pipeline_kit import Hospital, image
from sqlalchemy import text

from qure_provider.delivery.assemble import Assembler
from qure_provider.delivery.courier import Courier
from qure_provider.delivery.rules import rules_from
from qure_provider.operators.redeliver import QureRedeliverOperator
from qure_provider.operators.upload import QureUploadBatchOperator
from qure_provider.store import Store
from qure_provider.triggers.alerts import Paging

RECEIVER = {"processing_id": "T", "connect_timeout": 2, "response_timeout": 2}


class Onward(Hospital):
    """A hospital that takes results onward.

    Attributes:
        out: A folder that receives results.
        to_folder: Its name as a destination.
    """

    def __init__(self, folder, emulator):
        super().__init__(folder, emulator)
        self.out = folder / "out"
        self.to_folder = f"file://{self.out}"

    @classmethod
    def like(cls, other, folder, emulator):
        """The same hospital, with a store of its own that another's was copied into."""
        hospital = cls(folder, emulator)
        shutil.copytree(other.root, hospital.root)
        hospital.run = SimpleNamespace(**vars(other.run))
        return hospital

    # The steps

    def enqueue(self, deliver_to=(), rules=(), *, is_final=True):
        """Record what is owed of the run."""
        with self.ledger() as ledger:
            run = self.run_row(ledger)
            courier = Courier(Store(str(self.root)), ledger, "test")
            return courier.enqueue(run.id, ledger.rows_of_run(run.id), rules_from(deliver_to, rules), is_final=is_final)

    def deliver(self, *destinations, **arguments):
        """Send what is owed; return what is in trouble."""
        with self.ledger() as ledger:
            courier = Courier(Store(str(self.root)), ledger, "test")
            return courier.deliver(destinations, **{"seconds": 20, **arguments})

    def show_upload(self, batch):
        """Run a batch's upload that only shows what it would send."""
        operator = QureUploadBatchOperator(task_id="upload", batch=batch, store_root=str(self.root), show_only="upload")
        operator.execute(self.context())

    def onward(self, *destinations, rules=()):
        """Record what is owed and send it."""
        self.enqueue(destinations, rules)
        return self.deliver(*destinations)

    def onward_paging(self, *destinations, findings):
        """The same, where people are told of these findings, too."""
        with self.ledger() as ledger:
            run = self.run_row(ledger)
            courier = Courier(Store(str(self.root)), ledger, "test", Paging(findings=findings))
            courier.enqueue(run.id, ledger.rows_of_run(run.id), rules_from(destinations, ()), is_final=True)
        return self.deliver(*destinations)

    def redeliver(self, **arguments):
        """Run ``qure_redeliver``'s task."""
        operator = QureRedeliverOperator(task_id="redeliver", store_root=str(self.root), **arguments)
        return operator.execute(self.context())

    # What the service, or the hospital, might have done

    def edit_result(self, folder, **values):
        """Change a stored result as if the service had said so."""
        store = Store(str(self.root))
        path = f"{folder}/result.json"
        store.write_json(path, store.read_json(path) | values)

    def add_file(self, folder, kind, content, media):
        """Add a file to a stored result as if it had come late."""
        name = f"{kind}.{media.rpartition('/')[2]}"
        (self.root / folder / name).write_bytes(content)
        assets = Store(str(self.root)).read_json(f"{folder}/result.json")["assets"]
        digest = hashlib.sha256(content).hexdigest()
        added = {"kind": kind, "name": name, "media": media, "size": len(content), "sha256": digest}
        self.edit_result(folder, assets=[*assets, added])

    def send_again(self, uid):
        """Plan a newer revision of a resource, which has no result yet."""
        columns = (
            "uid, route, study_id, series_instance_uid, modality, body_part, station_name, acquired, instances, facts, "
            "doubt, planned_at, updated_at, uploaded_at, conn_id, sent_in_parts"
        )
        self.sql(
            f"INSERT INTO resources (revision, fingerprint, reason, {columns}) "
            f"SELECT 2, 'changed', '', {columns} FROM resources WHERE uid = :uid",
            uid=uid,
        )

    def assembled(self, delivery, scratch):
        """What would be sent of a delivery."""
        with self.ledger() as ledger:
            return Assembler(Store(str(self.root)), ledger, scratch).assemble(delivery).content

    # What is there afterwards

    def run_row(self, ledger):
        return ledger.find_run(dag_id=self.run.dag_id, run_id=self.run.run_id, group_id="")

    def deliveries(self, destination=None, **wanted):
        """Every delivery, of all runs, whose attributes are as wanted."""
        with self.ledger() as ledger:
            uids = {row.identity.study_instance_uid for run in ledger.all_runs() for row in ledger.rows_of_run(run.id)}
            rows = [row for uid in sorted(uids) for row in ledger.deliveries.of_study(uid)]
        return [
            row
            for row in rows
            if destination in (None, row.destination)
            and all(getattr(row, name) == value for name, value in wanted.items())
        ]

    def states(self, destination=None):
        """How often each state occurs."""
        counted = {}
        for row in self.deliveries(destination):
            counted[row.state.value] = counted.get(row.state.value, 0) + 1
        return counted

    def table(self, name):
        """Every row of a table of the ledger."""
        with self.ledger() as ledger, ledger._engine.begin() as connection:
            return [dict(row) for row in connection.execute(text(f"SELECT * FROM {name}")).mappings()]

    def received(self):
        """Every file that the folder received, relative to it."""
        if not self.out.exists():
            return []
        files = [path for path in self.out.rglob("*") if path.is_file()]
        return sorted(str(path.relative_to(self.out)) for path in files)

    def history(self, study):
        with self.ledger() as ledger:
            return ledger.deliveries.events_of_study(study)


def onto(study, patient_id):
    """A SIMULATED image as an archive has it, of a study and a patient."""
    return image(StudyInstanceUID=study, PatientID=patient_id, PatientName="", AccessionNumber="")


def mllp_connection(receiver, **extra):
    """The environment's value of a connection to an HL7 receiver."""
    host, port = (receiver.host, receiver.port) if receiver else ("127.0.0.1", 1)
    settings = {name: value for name, value in {**RECEIVER, **extra}.items() if value is not None}
    return json.dumps({"conn_type": "mllp", "host": host, "port": port, "extra": settings})
