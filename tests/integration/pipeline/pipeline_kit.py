"""A small hospital: an export of SIMULATED images, a store, and the steps of a night, each as its task runs it."""

import asyncio
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
from airflow.sdk import AsyncCallback, BaseNotifier
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.module_loading import import_string
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import generate_uid
from sqlalchemy import text
from tenacity import wait_none

from qure_provider.hooks import retry
from qure_provider.ledger.ledger import Ledger
from qure_provider.operators.collect import QureCollectBatchOperator
from qure_provider.operators.compute import QureComputeBatchOperator
from qure_provider.operators.plan import QurePlanOperator
from qure_provider.operators.summarize import QureSummarizeOperator
from qure_provider.operators.upload import QureUploadBatchOperator
from qure_provider.store import Store, ledger_url
from qure_provider.triggers import alerts
from qure_provider.triggers import results as results_trigger

CLASSES = {
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
}
NIGHT = "2026-11-20"
QUICK = {"first_poll_seconds": 0.02, "max_poll_seconds": 0.1, "settle_seconds": 0.05}
"""Seconds between questions, so that a test does not wait."""


def image(modality="CR", *, pixels=32, **values):
    """One SIMULATED image with fresh UIDs; ``values`` are keywords."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = CLASSES[modality]
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid(), generate_uid()
    ds.Modality = modality
    ds.PatientName, ds.PatientID, ds.AccessionNumber = "SIMULATED^PATIENT", "SIM-1", "SIM-A1"
    ds.PatientBirthDate, ds.PatientSex = "19700101", "F"
    ds.StudyDate = ds.AcquisitionDate = "20261120"
    ds.StudyTime = ds.AcquisitionTime = "101500"
    ds.StationName = "SIM-ROOM"
    ds.BodyPartExamined = "CHEST" if modality in {"CR", "DX"} else "HEAD"
    ds.Rows = ds.Columns = pixels
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 8, 8, 7, 0, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.PixelData = np.zeros((pixels, pixels), np.uint8).tobytes()
    ds["PixelData"].VR = "OB"
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    ds.preamble = bytes(128)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def slices(count=10, **values):
    """A SIMULATED head CT."""
    shared = {
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.5, 0.5],
        "SliceThickness": 5,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        **values,
    }
    return [
        image("CT", InstanceNumber=number + 1, ImagePositionPatient=[0, 0, number * 5.0], **shared)
        for number in range(count)
    ]


class Pager(BaseNotifier):
    """Tells people by noting what it would say.

    Attributes:
        told: What was said, and where: in a ``task`` or in the ``triggerer``.
        problems: What the next tries end with.
        tries: How many tries there were.
    """

    template_fields = ("message",)
    told: ClassVar[list[tuple[str, str]]] = []
    problems: ClassVar[list[BaseException]] = []
    tries: ClassVar[int] = 0
    where: ClassVar[str] = "task"

    def __init__(self, message, **arguments):
        super().__init__(**arguments)
        self.message = message

    @classmethod
    def reset(cls):
        cls.told, cls.problems, cls.tries, cls.where = [], [], 0, "task"

    @classmethod
    def callback(cls, message="{{ alert.study_ref }}"):
        """What a DAG passes as one of its notifiers."""
        return AsyncCallback(f"{cls.__module__}.{cls.__qualname__}", kwargs={"message": message})

    async def async_notify(self, context):
        Pager.tries += 1
        if Pager.problems:
            raise Pager.problems.pop(0)
        Pager.told.append((Pager.where, self.message))


class State(dict):
    """What Airflow keeps for a task over its tries."""

    def get(self, key, default=None):
        return dict.get(self, key, default)

    def set(self, key, value, **_):
        self[key] = json.loads(json.dumps(value))

    def delete(self, key):
        self.pop(key, None)


class Hospital:
    """An export, a store and a connection to the emulator.

    Attributes:
        export: This night's export folder.
        root: The store's root.
        emulator: The running emulator.
        run: What tasks see of their run.
        events: What the triggers of the last wait fired.
        pushed: The XComs that tasks pushed themselves, by key.
    meanwhile: Called before a trigger begins to poll: what happens at the service while a task waits.
    """

    def __init__(self, folder: Path, emulator):
        self.export = folder / "exports" / NIGHT
        self.export.mkdir(parents=True)
        self.root = folder / "store"
        self.emulator = emulator
        self.control = emulator.control
        self.events = []
        self.meanwhile = lambda: None
        self.pushed = {}
        self.new_run()

    def new_run(self, run_id="scheduled__1", *, dag_id="night", clear_number=0):
        """Begin another run."""
        self.run = SimpleNamespace(
            dag_id=dag_id,
            run_id=run_id,
            clear_number=clear_number,
            partition_key=None,
            logical_date=datetime(2026, 11, 20, 2, tzinfo=UTC),
            run_after=datetime(2026, 11, 21, 2, tzinfo=UTC),
        )

    def context(self, state=None):
        """What one try of a task gets."""
        return {
            "dag_run": self.run,
            "ti": SimpleNamespace(id=uuid.uuid4(), xcom_push=lambda key, value: self.pushed.update({key: value})),
            "task_state_store": State() if state is None else state,
        }

    # The export

    def put(self, name, dataset):
        """Write one object into the export, and return it."""
        path = self.export / name
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path)
        return dataset

    def xray(self, name="xray", images=1, **values):
        """Export an X-ray series; return its images."""
        shared = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), **values}
        return [
            self.put(f"{name}/{number}.dcm", image("CR", InstanceNumber=number + 1, **shared))
            for number in range(images)
        ]

    def ct(self, name="ct", count=10, **values):
        """Export a head CT; return its images."""
        return [self.put(f"{name}/{number}.dcm", each) for number, each in enumerate(slices(count, **values))]

    # The steps

    def plan(self, **arguments):
        """Plan the night; return its batches as XCom carries them."""
        operator = QurePlanOperator(
            task_id="plan", store_root=str(self.root), **{"export": str(self.export.parent / "{night}"), **arguments}
        )
        return json.loads(json.dumps(operator.execute(self.context())))

    def upload(self, batch, context=None):
        """Run one try of a batch's upload."""
        operator = QureUploadBatchOperator(task_id="upload", batch=batch, store_root=str(self.root))
        operator.execute(context or self.context())

    def compute(self, batch, context=None):
        """Run one try of a batch's compute."""
        operator = QureComputeBatchOperator(task_id="compute", batch=batch, store_root=str(self.root))
        operator.execute(context or self.context())

    def collector(self, batch, **arguments):
        """Make a batch's collect task."""
        return QureCollectBatchOperator(
            task_id="collect", batch=batch, store_root=str(self.root), **{**QUICK, **arguments}
        )

    def collect(self, batch, **arguments):
        """Run one try of a batch's collect, deferrals included."""
        self.drive(self.collector(batch, **arguments))

    def drive(self, operator, context=None):
        """Run one try of a task that may defer, as workers and the triggerer would; return what it returns."""
        context = context or self.context()
        self.events = []
        step = lambda: operator.execute(context)  # noqa: E731
        for _ in range(50):
            try:
                return step()
            except TaskDeferred as deferred:
                self.meanwhile()
                event = fire(deferred.trigger)
                self.events.append(event)
                arguments = {**(deferred.kwargs or {}), "event": event}
                method = deferred.method_name
                step = lambda: operator.resume_execution(method, arguments, context)  # noqa: B023, E731
        raise AssertionError("It deferred fifty times.")

    def summarize(self, **arguments):
        """Run the summary."""
        operator = QureSummarizeOperator(task_id="summarize", store_root=str(self.root), **arguments)
        return operator.execute(self.context())

    def process(self, batches, **arguments):
        """Send, compute and collect every batch."""
        for batch in batches:
            self.upload(batch)
            if batch["route"] == "ct":
                self.compute(batch)
            self.collect(batch, **arguments)

    def night(self, **arguments):
        """Run a whole night; return the summary as written."""
        self.process(self.plan(**arguments))
        self.summarize()
        return self.summary()

    # What is there afterwards

    def summary(self):
        """The newest summary that was written."""
        (run,) = self.root.glob(f"runs/*/{self.run.dag_id}__{self.run.run_id}")
        return json.loads((run / "summary.json").read_text(encoding="utf-8"))

    def ledger(self):
        """Open the ledger."""
        return Ledger.open(ledger_url(str(self.root)))

    def rows(self):
        """Every resource of the run by UID."""
        with self.ledger() as ledger:
            run = ledger.find_run(dag_id=self.run.dag_id, run_id=self.run.run_id, group_id="")
            return {row.uid: row for row in ledger.rows_of_run(run.id)}

    def result(self, row):
        """A stored result's JSON."""
        return Store(str(self.root)).read_json(f"{row.store_path}/result.json")

    def sql(self, statement, **parameters):
        """Change the ledger behind everybody's back."""
        with self.ledger() as ledger, ledger._engine.begin() as connection:
            connection.execute(text(statement), parameters)

    def sent(self):
        """How many files the service received, whether it kept them or not."""
        return len(self.control.received())


def connect(monkeypatch, emulator):
    """The connection ``qure_default`` leads to the emulator; nobody waits longer than a test can."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    fields = {"conn_type": "qure", "host": emulator.base_url, "password": emulator.token}
    extra = {"source": emulator.source, "requests_per_second": 1000}
    monkeypatch.setenv("AIRFLOW_CONN_QURE_DEFAULT", json.dumps({**fields, "extra": extra}))
    monkeypatch.setenv("AIRFLOW__QURE__IDENTITY_POLICY", "identified")
    monkeypatch.setattr(retry, "BACKOFF", wait_none())
    monkeypatch.setattr(alerts, "PAUSES_SECONDS", (0.0, 0.01, 0.01))
    Pager.reset()
    monkeypatch.setattr(results_trigger.random, "uniform", lambda low, high: low)


def fire(trigger):
    """Run a trigger as the triggerer would: rebuilt from its row; return its event's payload."""
    path, arguments = trigger.serialize()
    rebuilt = import_string(path)(**json.loads(json.dumps(arguments)))
    Pager.where = "triggerer"
    try:
        return asyncio.run(_first(rebuilt))
    finally:
        Pager.where = "task"


async def _first(trigger):
    async with asyncio.timeout(90):
        async for event in trigger.run():
            return json.loads(json.dumps(event.payload))
    raise AssertionError("The trigger ended without an event.")
