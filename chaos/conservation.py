"""The conservation check: every file that went in, and every result that came out, counted at each place.

It compares five accounts that know nothing of each other: the exported files, what the service saw, the ledger's
tables, the files in the store, and what the receivers have. No account is taken at another's word.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pydicom
from sqlalchemy import create_engine, select

from chaos.truth import SourceFile
from qure_provider import settings
from qure_provider.emulator.control import EmulatorControl
from qure_provider.ledger.schema import alerts, deliveries, parcels, resources, studies
from qure_provider.reports.study_report import report_key

PRODUCTS = ("qxr", "qmsk", "qer", "qct")
NEVER_ONWARD = ("original", "original_thumbnail")
"""The service's copies of the image, which no archive may get."""
RESOLVED = frozenset({"ready", "invalid", "unsupported"})
ARRIVED = frozenset({"delivered", "superseded", "not wanted"})


@dataclass(frozen=True, slots=True)
class ArrivedObject:
    """One DICOM object that an archive has."""

    instance: str
    study: str
    patient_id: str
    patient_name: str
    accession: str


@dataclass(frozen=True, slots=True)
class ArrivedMessage:
    """One HL7 message as often as a RIS got it.

    Attributes:
        number: OBR-3.
        control_id: MSH-10.
        patient_id: PID-3, its first component.
        accession: OBR-18.
        digest: Of the whole message.
    """

    number: str
    control_id: str
    patient_id: str
    accession: str
    digest: str


@dataclass(frozen=True, slots=True)
class ArrivedReport:
    """One DiagnosticReport that an EHR has.

    Attributes:
        number: The identifier that is the same for all its revisions.
        study: The study that it says it is of.
        patient_id: Of the patient that it hangs on.
    """

    number: str
    study: str
    patient_id: str


class Receivers(Protocol):
    """What the hospital's systems have."""

    def objects(self) -> list[ArrivedObject]:
        """What the archive ``pacs`` has."""

    def messages(self) -> list[ArrivedMessage]:
        """What the RIS ``ris`` got, in order."""

    def reports(self) -> list[ArrivedReport]:
        """What the EHR ``ehr`` has."""

    def told(self) -> Counter[str]:
        """How often people were told of which study, by its pseudonym."""


@dataclass(frozen=True, slots=True)
class Books:
    """Where the five accounts are.

    Attributes:
        sources: The exported files, those that vanished since included.
        control: The emulator's.
        ledger: SQLAlchemy URL.
        store: The store's root.
        receivers: The receivers.
        resent: How many files may have reached the service a second time, because an answer was lost.
        recomputed: How often a series may have been computed once more, because the answer to being asked was lost.
        repeated: How many objects, messages and pages may have come to a receiver again under the same id, as an answer
            was lost or was no acceptance.
    """

    sources: Sequence[SourceFile]
    control: EmulatorControl
    ledger: str
    store: Path
    receivers: Receivers
    resent: int = 0
    recomputed: int = 0
    repeated: int = 0


@dataclass(slots=True)
class Verdict:
    """What is wrong, in words without patients' data; nothing, where all is conserved.

    Attributes:
        lost: What went in and is nowhere.
        doubled: What is there more often than once.
        misplaced: What is on another patient or study than its source.
        silent: What is unresolved, undelivered or unknown, and nobody was told.
    """

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    misplaced: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {name: len(getattr(self, name)) for name in ("lost", "doubled", "misplaced", "silent")}

    def lines(self) -> Iterator[str]:
        """Everything that is wrong."""
        for name in self.counts:
            for problem in getattr(self, name):
                yield f"{name}: {problem}"


def check(books: Books) -> Verdict:
    """Compare the accounts.

    Args:
        books: Where they are.

    Returns:
        What is wrong.
    """
    accounts = _Accounts(books)
    verdict = Verdict()
    for examine in (_files, _service, _store, _deliveries, _arrivals, _people):
        examine(accounts, verdict)
    return verdict


class _Accounts:
    """The five accounts, read once."""

    def __init__(self, books: Books) -> None:
        self.books = books
        studies_ = {source.study for source in books.sources if source.study}
        self.ledger: list[dict[str, Any]] = []
        self.deliveries: list[dict[str, Any]] = []
        self.alerts: list[dict[str, Any]] = []
        engine = create_engine(books.ledger)
        with engine.connect() as connection:
            rows = connection.execute(
                select(resources, studies.c.study_instance_uid).join(studies, studies.c.id == resources.c.study_id)
            )
            self.ledger = [dict(row) for row in rows.mappings() if row["study_instance_uid"] in studies_]
            owed = connection.execute(
                select(
                    deliveries,
                    *(parcels.c[name] for name in ("kind", "subject", "study_instance_uid", "product", "resource_ids")),
                    parcels.c.revision.label("parcel_revision"),
                ).join(parcels, parcels.c.id == deliveries.c.parcel_id)
            )
            self.deliveries = [dict(row) for row in owed.mappings() if row["study_instance_uid"] in studies_]
            known = {row["id"] for row in self.ledger}
            self.alerts = [
                dict(row)
                for row in connection.execute(select(alerts)).mappings()
                if row["resource_id"] in known and row["sent_at"] is not None
            ]
        engine.dispose()
        self.patients = {source.study: source for source in books.sources}
        self.newest = {row["uid"]: row for row in sorted(self.ledger, key=lambda row: row["revision"])}
        self.summaries = _summaries(books.store, {source.night for source in books.sources})
        self.problems = " ".join(problem for summary in self.summaries.values() for problem in summary["problems"])
        self.passed_over = _passed_over(books.store)
        self.numbers = {
            report_key(study, product): source for study, source in self.patients.items() for product in PRODUCTS
        }

    def is_passed_over(self, source: SourceFile) -> bool:
        """Whether a run gave a reason for a file, or for a folder that it lies in, which it could not list."""
        parts = source.path.split("/")
        above = ["/".join(parts[:number]) + "/" for number in range(1, len(parts))]
        return any((source.night, path) in self.passed_over for path in (source.path, *above))

    def is_named(self, uid: str) -> bool:
        """Whether a night's last summary says of a resource that it needs somebody."""
        return settings.short_ref(uid) in self.problems


def _summaries(store: Path, nights: Collection[str]) -> dict[str, dict[str, Any]]:
    """The newest summary of each night."""
    newest: dict[str, Path] = {}
    for night in nights:
        found = sorted((store / "runs" / night).glob("*/summary.json"), key=lambda path: path.stat().st_mtime_ns)
        if found:
            newest[night] = found[-1]
    return {night: json.loads(path.read_text(encoding="utf-8")) for night, path in newest.items()}


def _passed_over(store: Path) -> dict[tuple[str, str], str]:
    """Night and path of what some run did not send, with the reason."""
    passed_over = {}
    for path in (store / "runs").glob("*/*/passed_over.jsonl"):
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            if row["reason"]:
                passed_over[path.parents[1].name, row["path"]] = str(row["reason"])
    return passed_over


def _files(accounts: _Accounts, verdict: Verdict) -> None:
    """Every exported file reached the service, or was passed over for a reason, or is named by a red summary."""
    held = {file.sha256 for file in accounts.books.control.received() if file.registered}
    for source in accounts.books.sources:
        if accounts.is_passed_over(source):
            continue
        if not source.resource:
            verdict.lost.append("a file that is no image was neither sent nor quarantined")
        elif source.resource not in accounts.newest:
            verdict.lost.append(f"{_ref(source.resource)}: a file of it is in no account")
        elif source.sha256 not in held and not accounts.is_named(source.resource):
            verdict.lost.append(f"{_ref(source.resource)}: a file never reached the service, and no summary says so")
    for night, summary in accounts.summaries.items():
        if not summary["sums_hold"]:
            verdict.lost.append(f"the sums of {night} are off")
    for uid, row in accounts.newest.items():
        if row["outcome"] is None and not accounts.is_named(uid):
            verdict.lost.append(f"{_ref(uid)}: it has no outcome, and no summary says so")


def _service(accounts: _Accounts, verdict: Verdict) -> None:
    """The service got nothing again that it had acknowledged, and computed each revision once."""
    ours = {source.sha256 for source in accounts.books.sources}
    arrivals = Counter(file.sha256 for file in accounts.books.control.received() if file.registered)
    for digest in arrivals.keys() & ours:
        times = max(1, len({s.path for s in accounts.books.sources if s.sha256 == digest}))
        arrivals[digest] = max(0, arrivals[digest] - times)
    again = sum(arrivals[digest] for digest in ours)
    if again > accounts.books.resent:
        verdict.doubled.append(f"{again} files reached the service again, {accounts.books.resent} had to")
    sent = Counter(row["uid"] for row in accounts.ledger)
    for state in accounts.books.control.resources():
        allowed = max(sent[state.uid], 1) + accounts.books.recomputed
        if state.study_instance_uid in accounts.patients and state.revision > allowed:
            verdict.doubled.append(f"{_ref(state.uid)}: computed {state.revision} times for {sent[state.uid]} sendings")


def _store(accounts: _Accounts, verdict: Verdict) -> None:
    """Each ready resource has one whole result, its own; nothing else is there."""
    folders = {row["store_path"] for row in accounts.ledger if row["store_path"]}
    for row in accounts.newest.values():
        if row["outcome"] != "ready":
            continue
        if not row["store_path"]:
            verdict.lost.append(f"{_ref(row['uid'])}: ready, and not in the store")
            continue
        for problem in _stored(accounts.books.store / row["store_path"], row):
            verdict.lost.append(f"{_ref(row['uid'])}: {problem}")
    for path in (accounts.books.store / "studies").glob("**/result.json"):
        study = path.relative_to(accounts.books.store).parts[1]
        if study in accounts.patients and str(path.parent.relative_to(accounts.books.store)) not in folders:
            verdict.doubled.append("a result in the store belongs to nothing in the ledger")


def _stored(folder: Path, row: Mapping[str, Any]) -> Iterator[str]:
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield "its result is not in the store"
        return
    if (result["uid"], result["study_instance_uid"]) != (row["uid"], row["study_instance_uid"]):
        yield "the store has another result in its place"
    for asset in result["assets"]:
        path = folder / asset["name"]
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != asset["sha256"]:
            yield f"its {asset['kind']} is not whole"


def _objects_of(store: Path, row: Mapping[str, Any]) -> set[str]:
    """The instances that an archive must get of a result."""
    if not row["store_path"]:
        return set()
    folder = store / row["store_path"]
    if not (folder / "result.json").exists():
        return set()
    assets = json.loads((folder / "result.json").read_text(encoding="utf-8"))["assets"]
    onward = [
        folder / asset["name"]
        for asset in assets
        if asset["media"] == "application/dicom" and asset["kind"] not in NEVER_ONWARD
    ]
    whole = [path for path in onward if path.is_file() and path.stat().st_size]
    return {str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID) for path in whole}


def _deliveries(accounts: _Accounts, verdict: Verdict) -> None:
    """What is ready is owed to each receiver; what has a receipt is there; what is not says so in a summary."""
    owed: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in accounts.deliveries:
        for resource_id in row["resource_ids"]:
            owed[row["destination"], str(resource_id)].append(row)
        if row["state"] not in ARRIVED and f"Deliveries to {row['destination']}" not in accounts.problems:
            verdict.silent.append(f"a delivery to {row['destination']} is {row['state']}, and no summary says so")
    there = {item.instance for item in accounts.books.receivers.objects()}
    numbers = {
        "ris": {item.number for item in accounts.books.receivers.messages()},
        "ehr": {item.number for item in accounts.books.receivers.reports()},
    }
    for uid, row in accounts.newest.items():
        if row["outcome"] != "ready":
            continue
        for destination in ("pacs", "ris", "ehr"):
            rows = owed[destination, str(row["id"])]
            if not rows:
                verdict.lost.append(f"{_ref(uid)}: ready, and not even owed to {destination}")
            if not any(each["state"] == "delivered" for each in rows):
                continue
            if destination == "pacs" and not _objects_of(accounts.books.store, row) <= there:
                verdict.lost.append(f"{_ref(uid)}: there is a receipt, and the archive does not have every object")
            if destination in numbers and not {each["subject"] for each in rows} & numbers[destination]:
                verdict.lost.append(f"{_ref(uid)}: there is a receipt, and {destination} has no report of it")


def _arrivals(accounts: _Accounts, verdict: Verdict) -> None:
    """Nothing arrived that was not made, twice under two names, or on somebody else."""
    made = set().union(*(_objects_of(accounts.books.store, row) for row in accounts.ledger))
    objects = [item for item in accounts.books.receivers.objects() if item.study in accounts.patients]
    for instance in {item.instance for item in objects} - made:
        verdict.doubled.append(f"the archive has an object {_ref(instance)} that is in no result")
    for item in objects:
        source = accounts.patients[item.study]
        if (item.patient_id, item.patient_name, item.accession) != (
            source.patient_id,
            source.patient_name,
            source.accession,
        ):
            verdict.misplaced.append(f"an object in the archive is not on the patient of study {_ref(item.study)}")
    revisions: dict[tuple[str, str], set[int]] = defaultdict(set)
    for row in accounts.deliveries:
        revisions[row["destination"], row["subject"]].add(row["parcel_revision"])
    messages: dict[str, list[ArrivedMessage]] = defaultdict(list)
    for message in accounts.books.receivers.messages():
        if message.number in accounts.numbers:
            messages[message.number].append(message)
    for number, group in messages.items():
        source = accounts.numbers[number]
        if any((item.patient_id, item.accession) != (source.patient_id, source.accession) for item in group):
            verdict.misplaced.append(f"a message is not on the patient of study {_ref(source.study)}")
        controls = {item.control_id for item in group}
        if len(controls) > len(revisions["ris", number]):
            verdict.doubled.append(f"the RIS has more messages of study {_ref(source.study)} than it was owed")
        if len({(item.control_id, item.digest) for item in group}) > len(controls):
            verdict.doubled.append(f"study {_ref(source.study)}: two messages say different things under one id")
    arrived = Counter(item.instance for item in objects)
    arrived.update(item.control_id for group in messages.values() for item in group)
    again = arrived.total() - len(arrived)
    if again > accounts.books.repeated:
        verdict.doubled.append(f"{again} objects and messages came again, {accounts.books.repeated} had to")
    reports = [item for item in accounts.books.receivers.reports() if item.number in accounts.numbers]
    for number, times in Counter(item.number for item in reports).items():
        if times > 1:
            verdict.doubled.append(f"the EHR has {times} reports under one number {number}")
    for report in reports:
        source = accounts.numbers[report.number]
        if (report.study, report.patient_id) != (source.study, source.patient_id):
            verdict.misplaced.append(f"a report is not on the patient of study {_ref(source.study)}")


def _people(accounts: _Accounts, verdict: Verdict) -> None:
    """People were told of each urgent result, once; what the service did not say is not taken for normal."""
    told = accounts.books.receivers.told()
    for row in accounts.ledger:
        if row["meaning"] not in (None, "unknown") and not row["triage"]:
            verdict.silent.append(f"{_ref(row['uid'])}: no triage word, and yet a meaning")
        if row["meaning"] == "urgent" and not told[settings.short_ref(row["study_instance_uid"])]:
            verdict.silent.append(f"{_ref(row['uid'])}: urgent, and nobody was told")
    sent = Counter(settings.short_ref(_study_of(accounts, row["resource_id"])) for row in accounts.alerts)
    told_again = {study: times for study, times in told.items() if times > max(sent[study], 1)}
    if sum(told_again.values()) - len(told_again) > accounts.books.repeated:
        for study, times in told_again.items():
            verdict.doubled.append(f"study {study}: people were told {times} times, the ledger has {sent[study]}")
    unresolved = [uid for uid, row in accounts.newest.items() if row["outcome"] not in RESOLVED or row["doubt"]]
    verdict.silent.extend(
        f"{_ref(uid)}: {accounts.newest[uid]['outcome']}, and no summary says so"
        for uid in unresolved
        if not accounts.is_named(uid)
    )


def _study_of(accounts: _Accounts, resource_id: int) -> str:
    return next(str(row["study_instance_uid"]) for row in accounts.ledger if row["id"] == resource_id)


def _ref(uid: str) -> str:
    return f"resource {settings.short_ref(uid)}"
