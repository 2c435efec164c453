"""What whole nights are made of, and what is said of them."""

import subprocess
import sys

import psutil
import pytest

from benchmarks.night import Took, compare_naive, compare_sizes, cpu_of, ct_series, xrays
from qure_provider.api.model import Route
from qure_provider.dicom.scan import scan
from qure_provider.dicom.select import SelectionRules, select


def resources_of(folder):
    selected = select(scan(folder), SelectionRules()).selected
    return {ref.uid: len(each.series.instances) // len(each.resources) for each in selected for ref in each.resources}


@pytest.mark.parametrize(("export", "count"), [(xrays(3), 9), (ct_series(2, 12), 2)])
def test_every_resource_that_is_promised_can_be_found(tmp_path, export, count):
    facts = export(tmp_path / "export", "2026-01-02")

    assert resources_of(tmp_path / "export") == {each.uid: each.files for each in facts.resources}
    assert len(facts.resources) == count
    assert {each.route for each in facts.resources} <= set(Route)


def test_another_night_has_other_series(tmp_path):
    uids = [
        {each.uid for each in ct_series(2, 12)(tmp_path / night, night).resources}
        for night in ("2026-01-01", "2026-01-02")
    ]

    assert not uids[0] & uids[1]


NIGHTS = {
    100: Took(90.0, 150.0, {"emulator": 100, "task": 100}),
    1000: Took(200.0, 350.0, {"emulator": 180, "task": 125}),
    3000: Took(700.0, 1400.0, {"emulator": 200, "task": 150}),
}


def test_growth_of_time_and_memory():
    time, cpu, emulator, task = compare_sizes(NIGHTS)

    assert (time.ratio, time.met) == (pytest.approx(3.5), False)
    assert cpu.ratio == pytest.approx(4.0)
    assert (task.ratio, task.met) == (pytest.approx(1.5), False)
    assert (emulator.ratio, emulator.met) == (pytest.approx(2.0), None)


def test_the_other_dag_is_drawn_on_as_a_straight_line():
    measured, _, drawn, cpu = compare_naive(NIGHTS, {30: Took(100.0, 200.0), 100: Took(240.0, 410.0)})

    assert (measured.ours, measured.theirs) == (90.0, 240.0)
    assert (drawn.ours, drawn.theirs) == (200.0, pytest.approx(240.0 + 2 * 900))
    assert (cpu.ours, cpu.theirs) == (350.0, pytest.approx(410.0 + 3 * 900))
    assert drawn.met
    assert "drawn on" in drawn.name


def test_the_other_dag_imports(monkeypatch, tmp_path):
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    from benchmarks.naive.naive_nightly import dag

    assert {"list_series", "chain.upload", "chain.compute", "chain.wait", "chain.fetch"} == set(dag.task_ids)


def test_cpu_is_that_of_a_process_and_of_its_children_that_ended():
    before = cpu_of(psutil.Process())
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)

    assert cpu_of(psutil.Process()) - before >= 0.25
