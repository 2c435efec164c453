"""Whether the night came out as it had to, judged by what lies in the store and by what the emulator saw.

The pipeline's own accounting is compared with what was exported; it is not where the expectations come from.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom

from demo.export import ExpectedResource, ExportFacts
from demo.hospital import Mail
from qure_provider.api.model import Route
from qure_provider.dicom.model import Fate
from qure_provider.emulator.control import EmulatorControl
from qure_provider.emulator.model import Kind


@dataclass(frozen=True, slots=True)
class StoredResult:
    """One result as it lies in the store.

    Attributes:
        folder: Its folder.
        content: What its ``result.json`` says.
    """

    folder: Path
    content: Mapping[str, Any]

    @property
    def uid(self) -> str:
        """What it was asked by."""
        return str(self.content["uid"])


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What the run says of itself.

    Attributes:
        page: Its page for people; None where the run left no summary.
        sums: ``found`` and each fate to a number of files.
        outcomes: Outcome to number of resources.
        passed_over: Path to fate of every file that was not sent.
        keys: Folder of a result, relative to the store, to its study's pseudonymous key.
        problems: What the run itself found wrong.
    """

    page: Path | None
    sums: Mapping[str, int]
    outcomes: Mapping[str, int]
    passed_over: Mapping[str, str]
    keys: Mapping[str, str]
    problems: tuple[str, ...]


def read_run(store: Path, night: str) -> RunRecord:
    """Read the summary that the only run of a night left; without one, everything in it is zero.

    Args:
        store: The store's root.
        night: The night's name.

    Returns:
        What it says.
    """
    summaries = sorted((store / "runs" / night).glob("*/summary.json"))
    if len(summaries) != 1:
        nothing = dict.fromkeys(("found", *(fate.value for fate in Fate)), 0)
        return RunRecord(None, nothing, {}, {}, {}, (f"the run left {len(summaries)} summaries instead of one",))
    folder = summaries[0].parent
    summary = json.loads(summaries[0].read_text(encoding="utf-8"))
    counts = summary["counts"]
    lines = (folder / "passed_over.jsonl").read_text(encoding="utf-8").splitlines()
    return RunRecord(
        page=folder / "index.html",
        sums={"found": counts["found"], **{fate.value: counts[fate.value.replace(" ", "_")] for fate in Fate}},
        outcomes=summary["outcomes"],
        passed_over={row["path"]: row["fate"] for row in map(json.loads, lines)},
        keys={row["folder"]: row["study"] for row in summary["resources"]},
        problems=tuple(summary["problems"]),
    )


def stored_results(store: Path) -> list[StoredResult]:
    """All results in a store, whoever put them there."""
    found = sorted((store / "studies").rglob("result.json"))
    return [StoredResult(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in found]


NEVER_ONWARD = ("original", "original_thumbnail")

_IDENTIFYING = (
    *("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "ReferringPhysicianName"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
)


def check_arrived(results: Sequence[StoredResult], arrived: Mapping[str, int]) -> Iterator[str]:
    """Compare what the hospital's systems got with what lies in the store.

    Args:
        results: What lies in the store.
        arrived: What the archive (``pacs``), the RIS (``ris``) and the EHR (``ehr``) have.

    Yields:
        What is wrong, in words.
    """
    objects = sum(
        asset["media"] == "application/dicom" and asset["kind"] not in NEVER_ONWARD
        for result in results
        for asset in result.content["assets"]
    )
    reports = len({(result.content["study_instance_uid"], result.content["usecase"]) for result in results})
    for who, expected in (("pacs", objects), ("ris", reports), ("ehr", reports)):
        if arrived[who] != expected:
            yield f"{who} has {arrived[who]} of the {expected} that it should have"


ALERT_SECONDS = 70.0
"""One poll interval, at its longest, and 10 seconds."""


def alert_times(
    results: Sequence[StoredResult],
    keys: Mapping[str, str],
    store: Path,
    had: Mapping[str, float],
    mails: Sequence[Mail],
) -> dict[str, float]:
    """Tell how long after the service had an urgent result people were told of it.

    Args:
        results: What lies in the store.
        keys: Folder of a result, relative to the store, to its study's pseudonymous key.
        store: The store's root.
        had: When the service had a result, by what it is asked by, in seconds since the epoch.
        mails: What people got.

    Returns:
        Seconds, by what the result is asked by; without those that nobody was told of.
    """
    times = {}
    for result in results:
        key = keys.get(result.folder.relative_to(store).as_posix(), "unknown")
        told = [mail.at for mail in mails if key in mail.text]
        if result.content["meaning"] == "urgent" and told and result.uid in had:
            times[result.uid] = min(told) - had[result.uid]
    return times


def check_alerts(results: Sequence[StoredResult], times: Mapping[str, float], mails: Sequence[Mail]) -> Iterator[str]:
    """Compare whom was told of what with what was urgent.

    Args:
        results: What lies in the store.
        times: From ``alert_times``.
        mails: What people got.

    Yields:
        What is wrong, in words.
    """
    urgent = [result.uid for result in results if result.content["meaning"] == "urgent"]
    if len(mails) != len(urgent):
        yield f"{len(mails)} alerts came of {len(urgent)} urgent results"
    for uid in urgent:
        if uid not in times:
            yield "nobody was told of an urgent result"
        elif times[uid] > ALERT_SECONDS:
            yield f"an alert came {times[uid]:.0f} s after the service had the result"


def check_run(facts: ExportFacts, run: RunRecord) -> Iterator[str]:
    """Compare what the run says of itself with what was exported.

    Args:
        facts: What was exported.
        run: What the run says.

    Yields:
        What is wrong, in words.
    """
    yield from run.problems
    yield from check_sums(facts, run.sums)
    yield from check_fates(facts, run.passed_over)
    if (number := sum(run.outcomes.values())) != len(facts.resources):
        yield f"the run names an outcome for {number} resources, {len(facts.resources)} were exported"


def check_sums(facts: ExportFacts, sums: Mapping[str, int]) -> Iterator[str]:
    """Compare the run's sums with what was exported.

    Args:
        facts: What was exported.
        sums: ``found`` and each fate to a number of files, as the run counted.

    Yields:
        What is wrong, in words.
    """
    parts = sum(sums[fate.value] for fate in Fate)
    if sums["found"] != parts:
        yield f"the run's sums do not add up: found {sums['found']}, accounted for {parts}"
    expected = {"found": facts.found, **facts.sums}
    for name, number in expected.items():
        if sums[name] != number:
            yield f"{name}: the run counted {sums[name]} files, the export has {number}"


def check_fates(facts: ExportFacts, passed_over: Mapping[str, str]) -> Iterator[str]:
    """Compare what became of each file with what should have.

    Args:
        facts: What was exported.
        passed_over: Path to fate of every file that was not sent, as the run recorded it.

    Yields:
        What is wrong, in words.
    """
    expected = {file.path: file.fate.value for file in facts.files if file.fate is not Fate.SELECTED}
    what = {file.path: file.what for file in facts.files}
    for path in sorted(expected.keys() | passed_over.keys()):
        if passed_over.get(path) != expected.get(path):
            had, should = passed_over.get(path, "selected"), expected.get(path, "selected")
            yield f"a file ({what.get(path, 'not of the export')}) was {had} instead of {should}"


def check_results(facts: ExportFacts, results: Iterable[StoredResult]) -> Iterator[str]:
    """Compare what lies in the store with what there should be.

    Args:
        facts: What was exported.
        results: What lies in the store.

    Yields:
        What is wrong, in words.
    """
    by_uid: dict[str, list[StoredResult]] = {}
    for result in results:
        by_uid.setdefault(result.uid, []).append(result)
    for expected in facts.resources:
        found = by_uid.pop(expected.uid, [])
        if len(found) != 1:
            yield f"{expected.what}: {len(found)} results in the store instead of one"
        for result in found:
            for problem in _check_result(expected, result):
                yield f"{expected.what}: {problem}"
    if by_uid:
        yield f"{len(by_uid)} results in the store that nothing was exported for"


def _check_result(expected: ExpectedResource, result: StoredResult) -> Iterator[str]:
    wanted = {
        "route": expected.route.value,
        "outcome": "ready",
        "usecase": expected.product,
        "study_instance_uid": expected.study_instance_uid,
        "series_instance_uid": expected.series_instance_uid,
    }
    for name, value in wanted.items():
        if result.content[name] != value:
            yield f"{name} is {result.content[name]!r} instead of {value!r}"
    triage = result.content["triage"]
    if expected.triage and (triage or "").lower() != expected.triage.lower():  # the routes write it in different case
        yield f"triage is {triage!r} instead of {expected.triage!r}"
    assets = result.content["assets"]
    if not any(asset["media"] == "application/dicom" for asset in assets):
        yield "no DICOM object in the store"
    for asset in assets:
        path = result.folder / asset["name"]
        if not path.is_file():
            yield f"the file {asset['name']} is missing"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != asset["sha256"]:
            yield f"the file {asset['name']} is not what its checksum says"


def check_requests(facts: ExportFacts, control: EmulatorControl) -> Iterator[str]:
    """Compare what the emulator saw with what should have been sent as it is.

    Args:
        facts: What was exported.
        control: Of the emulator.

    Yields:
        What is wrong, in words.
    """
    wanted = Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in _selected(facts))
    yield from _check_received(wanted, Counter(file.sha256 for file in control.received()))
    yield from _check_computed(facts, control, str)


def check_deidentified_requests(
    facts: ExportFacts, control: EmulatorControl, known_as: Callable[[str], str]
) -> Iterator[str]:
    """Compare what the emulator saw with what should have been sent de-identified.

    Args:
        facts: What was exported.
        control: Of the emulator.
        known_as: From a UID of the export to its pseudonym.

    Yields:
        What is wrong, in words.
    """
    sources = [pydicom.dcmread(path, stop_before_pixels=True) for path in _selected(facts)]
    wanted = Counter(known_as(str(source.SOPInstanceUID)) for source in sources)
    received = control.received()
    yield from _check_received(wanted, Counter(file.sop_instance_uid for file in received))
    yield from _check_computed(facts, control, known_as)
    told = _told(sources, (Path(file.path) for file in received))
    if told:
        yield f"{told} files that reached the service tell whose they are"


def _selected(facts: ExportFacts) -> Iterator[Path]:
    return (facts.folder / file.path for file in facts.files if file.fate is Fate.SELECTED)


def _check_received(wanted: Counter[str], received: Counter[str]) -> Iterator[str]:
    if missing := (wanted - received).total():
        yield f"{missing} selected files never reached the service as they should"
    if surplus := (received - wanted).total():
        yield f"{surplus} files reached the service that were not selected, were altered, or came again"


def _check_computed(facts: ExportFacts, control: EmulatorControl, known_as: Callable[[str], str]) -> Iterator[str]:
    computed = Counter(request.uid for request in control.requests(Kind.COMPUTE) if request.status == 200)
    for resource in facts.resources:
        times = computed.pop(known_as(resource.uid), 0)
        if times != (resource.route is Route.CT):
            yield f"{resource.what}: computation was asked for {times} times"
    if computed:
        yield f"computation was asked for {len(computed)} series that should not have been sent"


def _told(sources: Iterable[pydicom.Dataset], received: Iterable[Path]) -> int:
    """Count the files in which a value that identifies stands, in any encoding that a header may have."""
    values = {str(source[keyword].value) for source in sources for keyword in _IDENTIFYING if source.get(keyword)}
    pattern = re.compile(
        b"|".join(
            re.escape(form.encode(encoding))
            for form in sorted({form for value in values for form in (value, value.upper(), value.replace("^", " "))})
            for encoding in ("utf-8", "utf-16-le")
        )
    )
    return sum(bool(pattern.search(path.read_bytes())) for path in received)
