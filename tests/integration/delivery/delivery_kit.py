"""A hospital with receivers: a folder, a RIS that speaks MLLP, and a night whose results only wait to be delivered."""

import json
import shutil
from types import SimpleNamespace

from pipeline_kit import Hospital

from qure_provider.delivery.courier import Courier
from qure_provider.delivery.rules import rules_from
from qure_provider.operators.redeliver import QureRedeliverOperator
from qure_provider.store import Store

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

    def onward(self, *destinations, rules=()):
        """Record what is owed and send it."""
        self.enqueue(destinations, rules)
        return self.deliver(*destinations)

    def redeliver(self, **arguments):
        """Run ``qure_redeliver``'s task."""
        operator = QureRedeliverOperator(task_id="redeliver", store_root=str(self.root), **arguments)
        return operator.execute(self.context())

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

    def received(self):
        """Every file that the folder received, relative to it."""
        if not self.out.exists():
            return []
        files = [path for path in self.out.rglob("*") if path.is_file()]
        return sorted(str(path.relative_to(self.out)) for path in files)

    def events(self, study):
        with self.ledger() as ledger:
            return ledger.deliveries.events_of_study(study)


def mllp_connection(receiver, **extra):
    """The environment's value of a connection to an HL7 receiver."""
    host, port = (receiver.host, receiver.port) if receiver else ("127.0.0.1", 1)
    return json.dumps({"conn_type": "mllp", "host": host, "port": port, "extra": {**RECEIVER, **extra}})
