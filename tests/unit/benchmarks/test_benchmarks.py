"""The harness of the benchmarks: what it computes, what it writes, and that it notices what is lost."""

import io
import json
import threading

import pydicom
import pytest
import requests
from rich.console import Console

from benchmarks import __main__ as program
from benchmarks.data import Image, uid, write_series
from benchmarks.figures import Figure, Lines, Target, WrongResultError, alternate, percentile, print_table
from benchmarks.sink import Sink


def test_the_median_of_alternating_rounds():
    turns = []
    values = {"a": iter([5.0, 1.0, 9.0]), "b": iter([2.0, 2.0, 8.0])}

    def contender(name):
        def run():
            turns.append(name)
            return next(values[name])

        return run

    medians = alternate({name: contender(name) for name in values}, rounds=3)

    assert medians == {"a": 5.0, "b": 2.0}
    assert turns == ["a", "b", "b", "a", "a", "b"]


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target("ratio", ">=", 3), True),
        (Target("ratio", ">=", 3.1), False),
        (Target("ratio", "<=", 2.9), False),
        (Target("ours", "<=", 6), True),
        (Target("ours", ">=", 7), False),
        (None, None),
    ],
)
def test_a_ratio_and_its_target(target, met):
    figure = Figure("speed", 6.0, "MB/s", 2.0, target)

    assert (figure.ratio, figure.met) == (3.0, met)


def test_a_figure_without_another_has_no_ratio_and_meets_none():
    figure = Figure("memory", 6.0, "MB", target=Target("ratio", ">=", 1))

    assert (figure.ratio, figure.met) == (None, False)


def test_percentiles_are_values_that_were_measured():
    values = list(range(1, 201))

    assert [percentile(values, percent) for percent in (0, 50, 99, 100)] == [1, 100, 198, 200]
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_one_json_line_a_figure(tmp_path):
    figures = [Figure("speed", 6.0, "MB/s", 2.0, Target("ratio", ">=", 3)), Figure("files", 8, "files")]

    lines = Lines(tmp_path / "build" / "bench.jsonl", ["upload"])
    for figure in figures:
        lines.write("upload", figure)

    lines = (tmp_path / "build" / "bench.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "part": "upload",
            "name": "speed",
            "ours": 6.0,
            "theirs": 2.0,
            "ratio": 3.0,
            "unit": "MB/s",
            "target": "ratio >= 3",
            "met": True,
        },
        {
            "part": "upload",
            "name": "files",
            "ours": 8,
            "theirs": None,
            "ratio": None,
            "unit": "files",
            "target": None,
            "met": None,
        },
    ]


def test_measuring_one_part_keeps_the_figures_of_the_others(tmp_path):
    path = tmp_path / "bench.jsonl"
    for parts, name in ((["upload", "scan"], "before"), (["scan"], "after")):
        lines = Lines(path, parts)
        for part in parts:
            lines.write(part, Figure(name, 1.0, "s"))

    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["part"], line["name"]) for line in written] == [("upload", "before"), ("scan", "after")]


def test_a_missed_target_shows_in_the_table():
    output = io.StringIO()

    print_table([Figure("speed", 2.0, "MB/s", 2.0, Target("ratio", ">=", 3))], "Upload", Console(file=output))

    assert "ratio >= 3" in output.getvalue()
    assert "NO" in output.getvalue()


@pytest.mark.parametrize(("error", "code"), [(None, 0), (WrongResultError("3 files lost"), 1), (OSError("broken"), 1)])
def test_a_missed_target_is_no_failure_but_a_lost_file_is(monkeypatch, tmp_path, error, code):
    def measure(folder, *, fast):
        assert folder.is_dir()
        assert fast
        yield Figure("speed", 1.0, "MB/s", 2.0, Target("ratio", ">=", 3))
        if error:
            raise error

    monkeypatch.setattr(program, "_measure", lambda part: measure)

    assert program.main(["scan", "--fast", "--build", str(tmp_path)]) == code
    (line,) = (tmp_path / "bench.jsonl").read_text().splitlines()
    assert json.loads(line)["met"] is False


def test_a_part_that_breaks_costs_no_other_its_figures(monkeypatch, tmp_path):
    def measure(part):
        def figures(folder, *, fast):
            assert (tmp_path / "bench.jsonl").read_text().count("speed") == {"upload": 0, "scan": 1}[part]
            yield Figure("speed", 1.0, "MB/s")
            if part == "upload":
                raise OSError("broken")

        return figures

    monkeypatch.setattr(program, "_measure", measure)

    assert program.main(["upload", "scan", "--build", str(tmp_path)]) == 1
    written = [json.loads(line)["part"] for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    assert written == ["upload", "scan"]
    assert not (tmp_path / "bench").exists()


def test_images_are_real_dicom_and_each_has_its_own_uids(tmp_path):
    paths = [*write_series(tmp_path, Image("CT", 8), series=7, count=3, per_folder=2, first=5)]

    images = [pydicom.dcmread(path) for path in paths]
    assert [image.SOPInstanceUID for image in images] == [uid(3, number) for number in (5, 6, 7)]
    assert [image.file_meta.MediaStorageSOPInstanceUID for image in images] == [path.stem for path in paths]
    assert {image.SeriesInstanceUID for image in images} == {uid(2, 7)}
    assert all(image.pixel_array.shape == (8, 8) for image in images)


@pytest.fixture
def sink():
    port = threading.Event()
    sink = Sink(uid(2, 0), 0.0)

    def announce(number):
        sink.url = f"http://127.0.0.1:{number}"
        port.set()

    threading.Thread(target=sink.serve, args=(announce,), daemon=True).start()
    assert port.wait(5)
    return sink


@pytest.mark.parametrize("size", [1, 60_000, 1_100_000])
def test_the_sink_counts_every_part_wherever_the_boundary_falls(sink, size):
    files = {f"file{index}": (f"file{index}", b"x" * (size + index)) for index in range(5)}

    answer = requests.post(f"{sink.url}/studies/", files=files, timeout=5)

    assert len(answer.json()["messages"]) == 5
    seen = requests.get(f"{sink.url}/seen", timeout=5).json()
    assert (seen["requests"], seen["files"]) == (1, 5)
    assert seen["bytes"] == len(answer.request.body)


def test_the_sink_counts_what_comes_in_chunks(sink):
    parts = b"".join(b"\r\n--mark\r\nContent-Type: application/dicom\r\n\r\n" + b"x" * 70_000 for _ in range(4))
    body = parts + b"\r\n--mark--"
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary="mark"'}

    chunks = (body[start : start + 999] for start in range(0, len(body), 999))
    requests.post(f"{sink.url}/dicom-web/studies", data=chunks, headers=headers, timeout=5).raise_for_status()

    assert json.loads(sink.take_seen()) == {"requests": 1, "files": 4, "bytes": len(body)}
