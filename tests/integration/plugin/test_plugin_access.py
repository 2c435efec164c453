"""Who sees what: no page without a login, no night without the permission on its DAG, no file outside the store."""

import pytest
from fastapi.routing import APIRoute
from plugin_kit import NIGHT, RUN, STUDY, STUDY_REF, row, summary

from qure_provider.plugin.entry import serve

SECRET = b"SECRET-OF-ANOTHER-PATIENT"
HTML = {"Accept": "text/html,*/*;q=0.8"}


def addresses():
    """One address of every route of the application, from the application itself."""
    from qure_provider.plugin.pages import app

    values = {"night": NIGHT, "run": RUN, "resource": "aaaaaaaaaa", "name": "sc_thumbnail.png"}
    values["study"] = STUDY_REF
    assert all(isinstance(route, APIRoute) for route in app.routes), "a route that nothing guards"
    return ["/qure" + route.path.format(**values) for route in app.routes]


@pytest.fixture
def of_one_night():
    return addresses()[1:]


def test_every_address_tried_here_is_one_that_works(night, get):
    assert len(addresses()) >= 5
    assert {address: get(address).status for address in addresses()} == dict.fromkeys(addresses(), 200)


def test_the_plugin_adds_no_other_way_in():
    from qure_provider.plugin.entry import QurePlugin
    from qure_provider.plugin.pages import app

    assert [each["app"] for each in QurePlugin.fastapi_apps] == [serve]
    for name in ("fastapi_root_middlewares", "flask_blueprints", "appbuilder_views", "react_apps"):
        assert not getattr(QurePlugin, name, None), name
    assert {method for route in app.routes for method in route.methods} == {"GET"}


def test_R4_every_route_asks_for_a_login_and_for_the_permission(night, get):
    """The list of nights is open to everybody who is logged in, and empty for who may see none."""
    for address in addresses():
        assert get(address, user=None).status == 401
        answer = get(address, user="nobody")
        assert answer.status == 403 or (address == "/qure/" and b"No night that you may see" in answer.body)


def test_nothing_is_shown_without_a_login(night, get):
    for address in addresses():
        answer = get(address, user=None)
        assert (answer.status, answer.body) == (401, b"Not authenticated")
        assert get(address, token="forged").status in {401, 403}


def test_a_person_without_a_login_is_sent_to_it_and_back(night, get):
    answer = get(night, user=None, **HTML)

    assert (answer.status, answer.body) == (303, b"")
    assert answer.headers["Location"].startswith("/api/v2/auth/login?next=%2Fqure%2Fruns%2F2026-11-20%2F")


def test_nothing_is_shown_without_the_permission_on_the_dag(night, get, of_one_night):
    for user in ("research", "nobody"):
        for address in of_one_night:
            answer = get(address, user=user)
            assert answer.status == 403
            assert b"You may not see" in answer.body
            assert STUDY_REF.encode() not in answer.body


def test_the_list_names_only_nights_that_the_user_may_see(night, store, get):
    store.add_run("2026-11-21", "research", summary(night="2026-11-21", dag_id="research_nightly"))

    assert b"2026-11-20" in get("/qure/").body
    assert b"2026-11-21" not in get("/qure/").body
    assert b"2026-11-21" in get("/qure/", user="research").body
    assert b"2026-11-2" not in get("/qure/", user="nobody").body


def test_the_dag_that_made_the_run_decides_and_not_what_its_folder_is_called(store, get):
    store.add_result()
    address = store.add_run(name="research_nightly__scheduled", content=summary(dag_id="qure_nightly"))

    assert get(address, user="research").status == 403
    assert get(address, user="radiology").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_pages_are_only_read(night, get, method):
    assert get(night, method=method).status == 405


def outside(store):
    """What must never be shown: beside the store, and within it what no page names."""
    (store.root.parent / "secret").write_bytes(SECRET)
    (store.root.parent / "outside").mkdir()
    (store.root.parent / "outside" / "summary.json").write_bytes(SECRET)
    for folder in ("outside", "runs", "../runs", "."):
        store.write(f"{folder}/summary.json", summary(row(impression=SECRET.decode())).to_json())
    store.write("ledger.sqlite3", SECRET)
    store.write("secret", SECRET)
    store.write(f"{STUDY}/unnamed.dcm", SECRET)
    store.write("studies/9.9/9.9.9/r1/sc.dcm", SECRET)
    store.write(f"runs/{NIGHT}/{RUN}/batch-000.json", SECRET)


@pytest.mark.parametrize(
    "tail",
    [
        "../../../secret",
        "../../../../secret",
        "..%2f..%2f..%2f..%2fsecret",
        "%2e%2e/%2e%2e/%2e%2e/%2e%2e/secret",
        "..%5c..%5csecret",
        "%252e%252e%252f%252e%252e%252fsecret",
        "batch-000.json",
        "summary.json",
        "results/aaaaaaaaaa/../../batch-000.json",
        "results/aaaaaaaaaa/unnamed.dcm",
        "results/aaaaaaaaaa/..%2f..%2f..%2f..%2f..%2fsecret",
        "results/aaaaaaaaaa/%2fetc%2fpasswd",
        "results/aaaaaaaaaa//etc/passwd",
        "results/aaaaaaaaaa/%00",
        "results/aaaaaaaaaa/sc_thumbnail.png%00.dcm",
        "results/../../../../studies/9.9/9.9.9/r1/sc.dcm",
        "results/bbbbbbbbbb/sc_thumbnail.png",
        "results/1.2.3.4.5/sc_thumbnail.png",
        "passed_over.jsonl/../summary.json",
    ],
)
def test_no_address_leads_to_what_a_page_does_not_name(night, store, get, tail):
    outside(store)

    answer = get(night + tail)

    assert answer.status == 404
    assert SECRET not in answer.body


@pytest.mark.parametrize(
    "tail",
    [
        "runs/../../outside/",
        "runs/%2e%2e/outside/",
        "runs/..%2f../outside/",
        "runs/../runs/",
        "runs/./outside/",
        f"runs/{NIGHT}/../",
        f"runs/{NIGHT}/%2e%2e/",
        f"runs/{NIGHT}//",
        "runs//etc/passwd/",
        "runs/%2fetc/passwd/",
        "runs/~/root/",
        "?before=../../../",
        "studies/1.2.3/1.2.3.4/1.2.3.4.5/r1/result.json",
        "ledger.sqlite3",
        "docs",
        "openapi.json",
    ],
)
def test_nor_to_other_folders(night, store, get, tail):
    outside(store)

    answer = get("/qure/" + tail)

    assert answer.status == (200 if tail.startswith("?") else 404)
    assert SECRET not in answer.body


@pytest.mark.parametrize(
    "linked", ["night", "run", "summary.json", "passed_over.jsonl", "result.json", "picture", "folder"]
)
def test_no_link_is_followed_out_of_the_store(night, store, get, linked):
    elsewhere = store.root.parent / "elsewhere"
    place = {
        "night": store.root / "runs" / NIGHT,
        "run": store.root / "runs" / NIGHT / RUN,
        "summary.json": store.root / "runs" / NIGHT / RUN / "summary.json",
        "passed_over.jsonl": store.root / "runs" / NIGHT / RUN / "passed_over.jsonl",
        "result.json": store.root / STUDY / "result.json",
        "picture": store.root / STUDY / "sc_thumbnail.png",
        "folder": store.root / STUDY,
    }[linked]
    place.rename(elsewhere)
    place.symlink_to(elsewhere)

    refused = {address for address in addresses() if get(address).status == 404}

    picture = f"{night}results/aaaaaaaaaa/sc_thumbnail.png"
    assert {"passed_over.jsonl": f"{night}passed_over.jsonl"}.get(linked, picture) in refused
    assert get("/qure/").status == 200


@pytest.mark.parametrize("folder", ["../outside", "/etc", "studies/../../outside", "runs/../.."])
def test_a_summary_that_lies_about_a_folder_leads_nowhere(store, get, folder):
    store.add_result()
    address = store.add_run(content=summary(row(folder=folder)))
    store.add_result(folder="../outside", assets={"sc_thumbnail.png": ("sc", "image/png", SECRET)})

    for name in ("", "sc_thumbnail.png", "result.json"):
        answer = get(f"{address}results/aaaaaaaaaa/{name}")
        assert answer.status == 404
        assert SECRET not in answer.body


def test_nor_does_a_result_that_lies_about_a_file(store, get):
    (store.root.parent / "secret").write_bytes(SECRET)
    address = store.add_run()
    store.add_result(assets={"../../../../../../secret": ("sc", "image/png", SECRET)})

    assert get(f"{address}results/aaaaaaaaaa/..%2f..%2f..%2f..%2f..%2f..%2fsecret").status == 404


def test_where_two_results_share_a_name_neither_is_shown(store, get):
    store.add_result()
    address = store.add_run(content=summary(row(), row(study="2222222222", folder="studies/2.2/2.2.2/r1")))

    assert get(f"{address}results/aaaaaaaaaa/").status == 404


def test_every_answer_is_guarded(night, get):
    for address in [*addresses(), "/qure/nothing", night + "results/bbbbbbbbbb/"]:
        for user in ("radiology", "nobody", None):
            headers = get(address, user=user).headers
            assert headers["Cache-Control"] == "no-store"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "script-src" not in policy
