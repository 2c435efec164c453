import io

from rich.console import Console

from demo.checks import StoredResult
from demo.export import make_export
from demo.report import Progress, make_rows, print_rows


def plain_console():
    return Console(file=io.StringIO(), width=200, highlight=False)


def instances(*states):
    return [{"task_id": task, "state": state} for task, state in states]


def test_progress_prints_a_task_when_it_moved_on_and_only_then():
    console = plain_console()
    progress = Progress(console)
    progress.show(instances(("plan", None), ("upload", None)))
    assert console.file.getvalue() == ""
    progress.show(instances(("plan", "running"), ("upload", None)))
    progress.show(instances(("plan", "running"), ("upload", None)))
    assert console.file.getvalue().count("plan: 0 of 1 done, 1 under way") == 1
    moved = instances(("plan", "success"), ("upload", "success"), ("upload", "failed"), ("upload", "deferred"))
    progress.show(moved)
    assert "plan: 1 of 1 done\n" in console.file.getvalue()
    assert "upload: 2 of 3 done, 1 failed, 1 waiting in the triggerer" in console.file.getvalue()


def test_the_table_says_what_is_where_and_marks_all_as_simulated(tmp_path):
    facts = make_export(tmp_path / "export", night="2026-01-15", studies=1, small=True)
    (urgent,) = facts.urgent
    store = tmp_path / "store"
    content = {
        "uid": urgent.uid,
        "usecase": "qer",
        "triage": "Critical",
        "meaning": "urgent",
        "study_instance_uid": urgent.study_instance_uid,
        "report": {"impression": "", "lines": ["SIMULATED. Abnormal study"]},
        "assets": [{"media": "application/dicom"}, {"media": "application/dicom"}, {"media": "application/pdf"}],
    }
    folder = store / "studies" / urgent.study_instance_uid / urgent.uid / "r1"
    where = f"studies/{urgent.study_instance_uid}/{urgent.uid}/r1"
    (row,) = make_rows(facts, [StoredResult(folder, content)], store, {where: "0a1b2c3d4e"}, {urgent.uid: 7.25})
    assert row.where == where
    console = plain_console()
    print_rows(console, [row])
    printed = console.file.getvalue()
    assert "SIMULATED" in printed.splitlines()[0]
    for text in ("0a1b2c3d4e", "qer", "Critical", "urgent", "Abnormal study", "7.2 s", "2 DICOM, 1 PDF"):
        assert text in printed
    assert f"studies/*{urgent.study_instance_uid[-6:]}/*{urgent.uid[-6:]}/r1" in printed
    assert facts.resources[0].study_instance_uid not in printed
