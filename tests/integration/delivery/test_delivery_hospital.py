"""A whole hospital of receivers: PACS by C-STORE and by STOW-RS, RIS, EHR and a folder, each behind a gate."""

import contextlib
import io
import json

import pytest
from airflow.cli.cli_parser import get_parser
from delivery_kit import mllp_connection
from support.dicom_archive import DicomArchive, match
from support.dicomweb_archive import DicomWebArchive
from support.fhir_server import running_fhir_server
from support.gate import Gate
from support.hl7_receiver import Hl7Receiver

from qure_provider.operators.summarize import NightUnresolvedError

PATIENTS = "urn:simulated:patients"


class Receivers:
    """What each receiver has, by what its user would see of it.

    Attributes:
        gates: By connection id; the folder has none.
    """

    def __init__(self, hospital, pacs, web, ris, ehr):
        self.hospital, self.pacs, self.web, self.ris, self.ehr = hospital, pacs, web, ris, ehr
        self.gates = {
            "pacs": Gate(pacs.port),
            "web": Gate(web.port),
            "ris": Gate(ris.port),
            "ehr": Gate(int(ehr.url.split(":")[2].partition("/")[0])),
        }
        pacs.answers = lambda identifier: match(*pacs.received)(identifier)

    @property
    def names(self):
        return [*self.gates, self.hospital.to_folder]

    def stop(self, name):
        if name in self.gates:
            self.gates[name].close()
        else:
            self.hospital.out.rename(self.hospital.out.with_name("unmounted"))
            self.hospital.out.write_text("not mounted")

    def start(self, name):
        if name in self.gates:
            self.gates[name].open()
        else:
            self.hospital.out.unlink()
            self.hospital.out.with_name("unmounted").rename(self.hospital.out)

    def patient_of(self, resource):
        """The patient that one of the EHR's resources is about."""
        (patient,) = [
            each
            for each in self.ehr.resources("Patient")
            if resource["subject"]["reference"] == f"Patient/{each['id']}"
        ]
        return patient

    def arrived(self):
        """Of each receiver, what is there: each thing once, however often it came."""
        reports = self.ehr.resources("DiagnosticReport")
        return {
            "pacs": set(self.pacs.uids),
            "web": set(self.web.uids),
            "ris": {message.control_id for message in self.ris.messages},
            "ehr": {identifier["value"] for report in reports for identifier in report["identifier"]},
            self.hospital.to_folder: set(self.hospital.received()),
        }

    def calls(self):
        """Of each receiver, how much it was ever sent."""
        return {
            "pacs": len(self.pacs.received),
            "web": len(self.web.received),
            "ris": len(self.ris.messages),
            "ehr": self.ehr.versions("DiagnosticReport"),
            self.hospital.to_folder: len(self.hospital.received()),
        }


@pytest.fixture
def receivers(hospital, monkeypatch):
    hospital.out.mkdir()
    with DicomArchive() as pacs, DicomWebArchive() as web, Hl7Receiver() as ris, running_fhir_server() as ehr:
        for number in (1, 2):
            ehr.admit(PATIENTS, f"SIM-{number}")
        receivers = Receivers(hospital, pacs, web, ris, ehr)
        waits = dict.fromkeys(("connect_timeout", "association_timeout", "response_timeout"), 5)
        short = {"connect_timeout": 5, "read_timeout": 5}
        ports = {name: gate.port for name, gate in receivers.gates.items()}
        for name, fields in {
            "pacs": {
                "conn_type": "dicom",
                "host": "127.0.0.1",
                "port": ports["pacs"],
                "extra": {"called_ae_title": "ARCHIVE", **waits},
            },
            "web": {"conn_type": "dicomweb", "host": f"http://127.0.0.1:{ports['web']}/dicom-web", "extra": short},
            "ehr": {
                "conn_type": "fhir",
                "host": f"http://127.0.0.1:{ports['ehr']}/fhir/",
                "extra": {"patient_identifier_system": PATIENTS, **short},
            },
        }.items():
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(fields))
        ris_gate = type("At", (), {"host": "127.0.0.1", "port": ports["ris"]})
        monkeypatch.setenv("AIRFLOW_CONN_RIS", mllp_connection(ris_gate))
        yield receivers
        for gate in receivers.gates.values():
            gate.close()


def export(hospital):
    """A chest film of two images and a head CT that bleeds; gives their first headers."""
    frontal, _ = hospital.xray("chest", 2)
    head = hospital.ct("head", PatientID="SIM-2", PatientName="SIMULATED^OTHER", AccessionNumber="SIM-A2")
    hospital.control.plan(head[0].SeriesInstanceUID, findings=("intracranial_hemorrhage",))
    return frontal, head[0]


def run(hospital, receivers, *, is_red=False, meanwhile=lambda: None):
    """A night from plan to summary, which is green or as expected red."""
    for batch in hospital.plan():
        hospital.process([batch], deliver_to=receivers.names)
        meanwhile()
    with pytest.raises(NightUnresolvedError) if is_red else contextlib.nullcontext():
        hospital.summarize(deliver_to=receivers.names)
    return hospital.summary()


def undelivered(summary, name):
    return {state: number for state, number in summary["deliveries"][name].items() if state != "delivered"}


def numbers(receivers):
    return {name if "://" not in name else "folder": len(there) for name, there in receivers.arrived().items()}


def owed(summary):
    """What the run owed each receiver, whatever became of it."""
    return {
        name if "://" not in name else "folder": sum(states.values()) for name, states in summary["deliveries"].items()
    }


WHOLE = {"pacs": 13, "web": 13, "ris": 2, "ehr": 4, "folder": 25}
"""What each receiver has of the night: objects, messages, a number and a revision of each report, files."""
OWED = {"pacs": 3, "web": 3, "ris": 2, "ehr": 2, "folder": 3}
IN_THE_MIDDLE = {"pacs": 3500, "web": 900, "ris": 180, "ehr": 6000}
"""After so many bytes of answers a receiver has answered to something of the night, and not to all of it."""


class TestEachIsStoppedDuringTheRun:
    def stopped(self, hospital, receivers, name):
        """A night in which a receiver is stopped; its summary."""
        export(hospital)
        if name in receivers.gates:
            receivers.gates[name].limit = IN_THE_MIDDLE[name]
            summary = run(hospital, receivers, is_red=True)
            assert not receivers.gates[name].is_open
            return name, summary
        stops = iter([lambda: receivers.stop(hospital.to_folder)])
        return hospital.to_folder, run(hospital, receivers, is_red=True, meanwhile=lambda: next(stops, lambda: None)())

    @pytest.mark.parametrize("name", ["pacs", "web", "ris", "ehr", "folder"])
    def test_and_everything_arrives_once_when_it_is_back(self, hospital, receivers, name):
        name, summary = self.stopped(hospital, receivers, name)
        assert {"waiting", "in doubt"} >= set(undelivered(summary, name)) > set()
        assert all(not undelivered(summary, other) for other in receivers.names if other != name)
        assert owed(summary) == OWED
        assert hospital.states(name)["delivered"] > 0

        receivers.start(name)
        assert hospital.redeliver(even_if_not_due=True) == {"reopened": 0, "troubles": 0}
        assert numbers(receivers) == WHOLE
        assert hospital.states() == {"delivered": sum(OWED.values())}

        before = receivers.calls()
        hospital.redeliver(even_if_not_due=True)
        hospital.new_run("scheduled__2")
        run(hospital, receivers)
        assert receivers.calls() == before

    def test_or_all_of_them_from_the_start(self, hospital, receivers):
        export(hospital)
        for name in receivers.names:
            receivers.stop(name)
        summary = run(hospital, receivers, is_red=True)
        assert owed(summary) == OWED
        assert hospital.states() == {"waiting": sum(OWED.values())}
        for name in receivers.names:
            receivers.start(name)
        hospital.sql("UPDATE deliveries SET due_at = 0")  # an hour later
        assert hospital.redeliver() == {"reopened": 0, "troubles": 0}
        assert numbers(receivers) == receivers_sent_once(receivers) == WHOLE


def receivers_sent_once(receivers):
    """How much each receiver was ever sent, where nothing was in doubt; of the EHR as it counts in ``WHOLE``."""
    return {
        name if "://" not in name else "folder": number * (2 if name == "ehr" else 1)
        for name, number in receivers.calls().items()
    }


class TestALateImage:
    def test_makes_a_revision_that_replaces_at_every_receiver(self, hospital, receivers):
        frontal, _ = export(hospital)
        run(hospital, receivers)
        before = receivers.arrived()
        reports = {report["id"]: report for report in receivers.ehr.resources("DiagnosticReport")}
        hospital.xray("late", StudyInstanceUID=frontal.StudyInstanceUID, SeriesInstanceUID=frontal.SeriesInstanceUID)
        hospital.new_run("scheduled__2")
        run(hospital, receivers)
        after = receivers.arrived()

        assert all(before[name] <= after[name] for name in ("pacs", "web", "ris", hospital.to_folder))
        assert {name: len(after[name] - before[name]) for name in ("pacs", "web", "ris")} == {
            "pacs": 4,
            "web": 4,
            "ris": 1,
        }
        old, new = [message for message in receivers.ris.messages if frontal.StudyInstanceUID in message.raw.decode()]
        assert old["OBR"][3] == new["OBR"][3]
        assert old["OBR"][4] == new["OBR"][4]
        assert old.control_id != new.control_id
        images = [line for line in new.all("OBX") if line[3].startswith("AI-IMAGE")]
        assert len(images) == 3
        assert len(receivers.ris.reports) == 2

        newer = {report["id"]: report for report in receivers.ehr.resources("DiagnosticReport")}
        assert newer.keys() == reports.keys()
        (changed,) = [key for key in newer if newer[key]["meta"]["versionId"] == "2"]
        assert newer[changed]["identifier"][0] == reports[changed]["identifier"][0]
        assert {each.split(".")[-1] for each in after["ehr"] - before["ehr"]} == {"2"}

    def test_takes_the_place_of_what_was_not_sent_yet(self, hospital, receivers):
        frontal, _ = export(hospital)
        for name in ("ris", "ehr"):
            receivers.stop(name)
        run(hospital, receivers, is_red=True)
        hospital.xray("late", StudyInstanceUID=frontal.StudyInstanceUID, SeriesInstanceUID=frontal.SeriesInstanceUID)
        hospital.new_run("scheduled__2")
        run(hospital, receivers, is_red=True)
        for name in ("ris", "ehr"):
            receivers.start(name)
        hospital.redeliver(even_if_not_due=True)
        for name in ("ris", "ehr"):
            of_chest = hospital.deliveries(name, study_instance_uid=frontal.StudyInstanceUID)
            assert [(row.revision, row.state.value) for row in of_chest] == [(1, "superseded"), (2, "delivered")]
        (message,) = [each for each in receivers.ris.messages if frontal.StudyInstanceUID in each.raw.decode()]
        assert len([line for line in message.all("OBX") if line[3].startswith("AI-IMAGE")]) == 3


class TestAPlantedContradiction:
    @pytest.mark.parametrize(
        ("planted", "reason"),
        [
            ({"report_sr": {"PatientID": "SIM-OTHER"}}, "an object of the result has another patient ID"),
            ({"report_dcm": {"StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1"}}, "of another study"),
            ({"report_dcm": {"SOPInstanceUID": None}}, "bears the UID of an image that was sent"),
        ],
    )
    def test_holds_the_whole_resource_at_every_receiver_and_is_named(self, hospital, receivers, planted, reason):
        frontal, head = export(hospital)
        planted = {
            kind: {key: value or frontal.SOPInstanceUID for key, value in keys.items()}
            for kind, keys in planted.items()
        }
        hospital.control.plan(frontal.SOPInstanceUID, attributes=planted)
        summary = run(hospital, receivers, is_red=True)
        for name in receivers.names:
            states = {
                (row.subject == frontal.SOPInstanceUID or row.kind.value == "report", row.state.value)
                for row in hospital.deliveries(name, study_instance_uid=frontal.StudyInstanceUID)
            }
            assert states <= {(True, "held"), (False, "delivered")}
            assert (True, "held") in states
        named = [problem for problem in summary["problems"] if reason in problem]
        assert len(named) == len(receivers.names)
        # Neither an object of it, nor its text, nor its PDF went anywhere; the other study did.
        assert not any(frontal.SOPInstanceUID in name for name in hospital.received())
        assert {study_of(message) for message in receivers.ris.messages} == {head.StudyInstanceUID}
        assert len(receivers.ehr.resources("DiagnosticReport")) == 1
        for archive in (receivers.pacs, receivers.web):
            assert len(archive.uids) == WHOLE["pacs"] - 4
        before = receivers.calls()
        hospital.redeliver(states="held", even_if_not_due=True)
        assert receivers.calls() == before


def study_of(message):
    (line,) = [line for line in message.all("OBX") if line[3].startswith("113014")]
    return line[5]


class TestAWithdrawal:
    def test_reaches_all_receivers_each_in_its_own_words(self, hospital, receivers):
        _, head = export(hospital)
        run(hospital, receivers)
        arrived = receivers.arrived()
        withdraw(hospital, head.StudyInstanceUID)
        for archive, sent in ((receivers.pacs, arrived["pacs"]), (receivers.web, arrived["web"])):
            (note,) = [each for each in archive.received if each.SOPInstanceUID not in sent]
            assert (note.Modality, note.StudyInstanceUID) == ("KO", head.StudyInstanceUID)
            (title,) = note.ConceptNameCodeSequence
            assert (title.CodeValue, title.CodingSchemeDesignator) == ("113037", "DCM")
            evidence = note.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
            rejected = {item.ReferencedSOPInstanceUID for series in evidence for item in series.ReferencedSOPSequence}
            assert rejected == {
                each.SOPInstanceUID
                for each in archive.received
                if each.StudyInstanceUID == head.StudyInstanceUID and each is not note
            }
        message = receivers.ris.reports[receivers.ris.messages[-1]["OBR"][3]]
        assert study_of_withdrawn(message, head)
        assert {line[11] for line in message.all("OBX")} == {"W"}
        statuses = {
            (kind, resource["status"])
            for kind in ("DiagnosticReport", "Observation")
            for resource in receivers.ehr.resources(kind)
            if "SIM-2" in json.dumps(receivers.patient_of(resource))
        }
        assert statuses == {("DiagnosticReport", "entered-in-error"), ("Observation", "entered-in-error")}
        others = {report["status"] for report in receivers.ehr.resources("DiagnosticReport")}
        assert others == {"entered-in-error", "partial"}
        (note,) = [name for name in hospital.received() if name.endswith("WITHDRAWN.json")]
        assert note.startswith(head.StudyInstanceUID)
        assert not hospital.states().keys() - {"delivered"}
        before = receivers.calls()
        hospital.redeliver(even_if_not_due=True)
        assert receivers.calls() == before

    def test_also_when_they_are_down_just_then(self, hospital, receivers):
        _, head = export(hospital)
        run(hospital, receivers)
        for name in receivers.names:
            receivers.stop(name)
        shown = withdraw(hospital, head.StudyInstanceUID)
        assert shown["still_owed_to"] == sorted(receivers.names)
        for name in receivers.names:
            receivers.start(name)
        hospital.redeliver(even_if_not_due=True)
        assert not hospital.states().keys() - {"delivered"}
        assert {line[11] for line in receivers.ris.messages[-1].all("OBX")} == {"W"}
        assert any(name.endswith("WITHDRAWN.json") for name in hospital.received())
        assert "entered-in-error" in {report["status"] for report in receivers.ehr.resources("DiagnosticReport")}


def study_of_withdrawn(message, head):
    return message["OBR"][18] == head.AccessionNumber


def withdraw(hospital, study):
    """``airflow qure withdraw`` of a study; what it printed."""
    words = ["--study", study, "--by", "Dr Simulated", "--why", "SIMULATED reason", "--yes"]
    arguments = get_parser().parse_args(["qure", "withdraw", *words, "--store-root", str(hospital.root)])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        arguments.func(arguments)
    return json.loads(printed.getvalue())
