"""What the pages show of a night, and how its files reach a browser."""

import html
import json
import re
import subprocess
import sys

import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem
from plugin_kit import NIGHT, PATIENT, PNG, RESOURCE_REF, STUDY, STUDY_REF, row, summary


def links(answer):
    return re.findall(r'(?:href|src)="([^"]+)"', answer.body.decode())


def test_a_night_shows_its_results_and_links_that_work(night, get):
    page = get(night)

    assert page.status == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert b"SIMULATED: nothing found" in page.body
    relative = [link for link in links(page) if not link.startswith("/")]
    assert {"results/aaaaaaaaaa/", "results/aaaaaaaaaa/sc_thumbnail.png", "passed_over.jsonl"} <= set(relative)
    assert {link: get(night + link).status for link in relative} == dict.fromkeys(relative, 200)
    assert "/qure/" in links(page)


def test_a_picture_is_the_file_in_the_store(night, get):
    picture = get(f"{night}results/aaaaaaaaaa/sc_thumbnail.png")

    assert picture.body == PNG
    assert picture.headers["Content-Type"] == "image/png"
    assert picture.headers["Content-Disposition"] == f'inline; filename="{STUDY_REF}-aaaaaaaaaa-sc_thumbnail.png"'


@pytest.mark.parametrize(
    ("name", "media", "content_type", "disposition"),
    [
        ("report.pdf", "application/pdf", "application/pdf", "inline"),
        ("sc.dcm", "application/dicom", "application/dicom", "attachment"),
        ("report.html", "text/html", "text/html; charset=utf-8", "attachment"),
        ("report.hl7", "x-application/hl7-v2+er7", "x-application/hl7-v2+er7", "attachment"),
        ("what.bin", "application/octet-stream", "application/octet-stream", "attachment"),
    ],
)
def test_only_what_is_harmless_is_shown_in_the_browser(store, get, name, media, content_type, disposition):
    store.add_result(assets={name: ("kind", media, b"SIMULATED")})
    address = store.add_run()

    answer = get(f"{address}results/aaaaaaaaaa/{name}")

    assert answer.body == b"SIMULATED"
    assert answer.headers["Content-Type"] == content_type
    assert answer.headers["Content-Disposition"].startswith(disposition + ";")


def test_a_file_of_many_blocks_arrives_whole(store, get):
    content = bytes(range(256)) * 20_000
    store.add_result(assets={"sc.dcm": ("sc", "application/dicom", content)})

    assert get(f"{store.add_run()}results/aaaaaaaaaa/sc.dcm").body == content


def test_a_result_shows_scores_decisions_and_files(night, get):
    page = get(f"{night}results/aaaaaaaaaa/")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.body.decode()))

    assert "opacity 0.25 no" in text
    assert "nodule not stated yes" in text
    assert "not verified by a radiologist" in text
    files = [link for link in links(page) if not link.startswith("../")]
    assert {"sc_thumbnail.png", "result.json", "answer.json"} == set(files)
    assert {get(f"{night}results/aaaaaaaaaa/{link}").status for link in files} == {200}


def test_a_study_shows_each_delivery_with_its_state_and_reason(night, store, get, monkeypatch):
    monkeypatch.setenv("AIRFLOW__QURE__TIMEZONE", "Asia/Kolkata")
    store.add_run(content=summary(row(resource=RESOURCE_REF)))
    assert f"studies/{STUDY_REF}/" in links(get(night))
    page = get(f"{night}studies/{STUDY_REF}/").body.decode()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))

    assert re.search(r"pacs objects, revision 1, qxr resource \w{10} delivered [-\d]{10} [:\d]{8}\+05:30 1", text)
    assert re.search(r"ris objects, revision 1, qxr resource \w{10} dead the receiver refused it \(AR\) 1", text)
    assert "not verified by a radiologist" in text
    assert f"../../results/{RESOURCE_REF}/" in re.findall(r'href="([^"]+)"', page)
    assert not any(word in page for word in (*PATIENT, "1.2.3"))


def test_a_study_that_the_ledger_knows_no_more_says_so(night, store, get):
    store.add_run(content=summary(row(), row(study="2222222222", resource="b")))
    for ref, says in (("2222222222", b"knows this study no more"), ("3333333333", b"has no such study")):
        answer = get(f"{night}studies/{ref}/")
        assert answer.status == 404
        assert says in answer.body


def test_where_the_ledger_cannot_be_read_it_is_said(store, get):
    store.add_result()
    store.write("ledger.sqlite3", b"no database" * 1000)
    answer = get(f"{store.add_run()}studies/{STUDY_REF}/")
    assert answer.status == 404
    assert b"The ledger cannot be read here (DatabaseError)" in answer.body


def test_addresses_name_no_uid(night, get):
    for address in (night, f"{night}results/aaaaaaaaaa/", f"{night}studies/{STUDY_REF}/"):
        assert not [link for link in links(get(address)) if "1.2.3" in link]


def test_what_the_service_wrote_is_text_and_no_markup(store, get):
    evil = '<script>alert(1)</script><img src=x onerror="alert(2)">'
    store.add_result()
    page = get(store.add_run(content=summary(row(impression=evil), problems=(evil,)))).body.decode()

    assert "<script" not in page
    assert "<img src=x" not in page
    assert html.escape(evil, quote=False).replace('"', "&#34;") in page


def test_a_results_page_has_all_that_the_service_wrote(store, get):
    store.add_result()
    path = store.root / STUDY / "result.json"
    report = {
        "impression": "SIMULATED: 1. No consolidation.\n2. Large pneumothorax",
        "findings": "SIMULATED findings",
        "findings_list": [["nodule", "SIMULATED nodule"], ["opacity", ""]],
        "lines": ["SIMULATED line"],
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"report": report}))
    page = get(f"{store.add_run()}results/aaaaaaaaaa/").body.decode()
    for text in (
        "2. Large pneumothorax",
        "SIMULATED findings",
        "nodule: SIMULATED nodule",
        "opacity",
        "SIMULATED line",
    ):
        assert text in page
    assert "no inline report" not in page


def test_the_list_goes_from_the_newest_night_to_the_oldest(store, get):
    from qure_provider.plugin.pages import NIGHTS

    names = [f"2026-{1 + number // 28:02d}-{1 + number % 28:02d}" for number in range(NIGHTS + 2)]
    for name in names:
        store.add_run(name)
    first = get("/qure/")
    shown = re.findall(r'href="runs/([^/]+)/', first.body.decode())
    older = get("/qure/" + next(link for link in links(first) if link.startswith("?before=")))

    assert shown == names[::-1][:NIGHTS]
    assert re.findall(r'href="runs/([^/]+)/', older.body.decode()) == names[::-1][NIGHTS:]


def test_the_list_says_what_needs_somebody(night, store, get):
    store.add_run("2026-11-19", content=summary(row(meaning="urgent"), night="2026-11-19", problems=("late",)))

    page = get("/qure/").body.decode()

    assert page.count("needs somebody") == 1
    assert page.count("everything answered") == 1
    assert '<span class="tag urgent">1</span>' in page


@pytest.mark.parametrize("content", [b"{}", b"", b"[]", b'{"schema": 99}', b'{"schema": 1}', b"\xff"])
def test_a_summary_that_cannot_be_read_is_said_to_be_there(night, store, get, content):
    store.write(f"runs/{NIGHT}/other/summary.json", content)

    answer = get(f"/qure/runs/{NIGHT}/other/")
    assert answer.status == 404
    assert b"index.html" in answer.body
    assert b"1 runs without a summary" in get("/qure/").body


def test_a_run_without_a_summary_says_who_writes_it(store, get):
    (store.root / "runs" / NIGHT / "under-way").mkdir(parents=True)

    answer = get(f"/qure/runs/{NIGHT}/under-way/")

    assert answer.status == 404
    assert b"summarize" in answer.body


@pytest.mark.parametrize("content", [b"", b"{}", b'{"schema": 99}'])
def test_a_result_that_cannot_be_read_is_not_shown(night, store, get, content):
    store.write(f"{STUDY}/result.json", content)

    assert get(f"{night}results/aaaaaaaaaa/").status == 404
    assert get(f"{night}results/aaaaaaaaaa/sc_thumbnail.png").status == 404


def test_a_file_that_is_gone_is_said_to_be(night, store, get):
    (store.root / STUDY / "sc_thumbnail.png").unlink()

    assert get(f"{night}results/aaaaaaaaaa/sc_thumbnail.png").status == 404


def test_a_file_that_cannot_be_read_is_no_empty_file(night, get, monkeypatch):
    from qure_provider.plugin import pages

    def broken(_kept):
        raise OSError("the disk is gone")
        yield

    monkeypatch.setattr(pages, "_chunks", broken)

    assert get(f"{night}results/aaaaaaaaaa/sc_thumbnail.png").status == 500


def test_a_summary_written_anew_is_shown_anew(night, store, get):
    assert b"SIMULATED: nothing found" in get(night).body
    store.add_run(content=summary(row(impression="SIMULATED: found later")))
    assert b"SIMULATED: found later" in get(night).body


def test_before_the_first_night_the_list_is_empty(store, get):
    assert b"summarized yet" in get("/qure/").body


def test_a_store_on_object_storage_is_read_as_well(store, get, monkeypatch):
    attach("memory", fs=MemoryFileSystem())
    store.add_result()
    night = store.add_run()
    remote = ObjectStoragePath("memory://qure-plugin")
    for path in store.root.rglob("*"):
        if path.is_file():
            target = remote / path.relative_to(store.root).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    monkeypatch.setenv("AIRFLOW__QURE__STORE_ROOT", "memory://qure-plugin")

    assert NIGHT.encode() in get("/qure/").body
    assert get(night).status == 200
    assert get(f"{night}results/aaaaaaaaaa/sc_thumbnail.png").body == PNG
    assert get(f"{night}results/aaaaaaaaaa/..%2f..%2fsecret").status == 404


def test_loading_the_plugin_loads_none_of_the_pages():
    code = (
        "import airflow.sdk.plugins_manager, sys; import qure_provider.plugin.entry; "
        "print([name for name in ('fastapi', 'jinja2', 'qure_provider.plugin.pages', 'qure_provider.store') "
        "if name in sys.modules and name != 'jinja2'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip().endswith("[]")
