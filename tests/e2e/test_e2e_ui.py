"""What a person sees of the provider in the Airflow UI, in a real browser against a real Airflow.

The tests build on each other, in order: a connection is entered, a run is triggered with it, its page is read.
"""

import re
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import expect, sync_playwright

from demo.airflow import USER, AirflowStack
from demo.export import make_export
from demo.processes import Processes
from demo.service import plan_findings, start_service

pytestmark = [pytest.mark.e2e, pytest.mark.system]

ROOT = Path(__file__).parents[2]
CHROMIUM = "/usr/bin/chromium"
NIGHT = "2026-11-20"
DAG_ID = "qure_on_demand"
LOGIN = "/auth/login"
SECONDS = 1000
"""In playwright's unit."""

expect.set_options(timeout=30 * SECONDS)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    with Processes(tmp_path_factory.mktemp("logs")) as processes:
        yield processes


@pytest.fixture(scope="module")
def service(processes, tmp_path_factory):
    return start_service(processes, tmp_path_factory.mktemp("service") / "emulator", processing_seconds=0)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return make_export(tmp_path_factory.mktemp("export") / NIGHT, night=NIGHT, studies=1, small=True)


@pytest.fixture(scope="module")
def airflow(processes, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    stack = AirflowStack(
        tmp_path_factory.mktemp("airflow"),
        dags_folder=ROOT / "dags",
        env={
            "AIRFLOW__QURE__STORE_ROOT": str(store),
            "AIRFLOW__QURE__DELIVER_TO": tmp_path_factory.mktemp("onward").as_uri(),
            "AIRFLOW__QURE__IDENTITY_POLICY": "identified",
            "AIRFLOW__QURE__ALLOW_QUARANTINED": "True",
            "AIRFLOW__QURE__TIMEZONE": "Asia/Kolkata",
        },
        processes=processes,
    ).start()
    stack.wait_ready(dag_ids=[DAG_ID])
    return stack


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


def log_in(page, airflow):
    page.get_by_role("textbox", name="Username").fill(USER)
    page.locator("input[type=password]").fill(airflow.password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: not urlsplit(url).path.startswith(LOGIN))


@pytest.fixture(scope="module")
def page(browser, airflow):
    context = browser.new_context(base_url=airflow.url, viewport={"width": 1400, "height": 1000}, locale="en-US")
    context.set_default_timeout(30 * SECONDS)
    page = context.new_page()
    page.goto(LOGIN)
    log_in(page, airflow)
    yield page
    context.close()


def test_the_provider_is_listed(page):
    page.goto("/providers")

    row = page.get_by_role("row", name="airflow-provider-qure")
    expect(row).to_contain_text("Send radiology studies to the Qure.ai Platform API")


def open_form(page, conn_id):
    page.goto("/connections")
    page.get_by_role("button", name="Add Connection").click()
    page.locator("input[name=connection_id]").fill(conn_id)
    page.get_by_role("dialog").get_by_role("combobox").first.click()
    page.keyboard.type("Qure.ai")
    page.get_by_role("option", name="Qure.ai", exact=True).click()


def test_a_connection_has_its_own_form(page, service):
    open_form(page, "qure_default")
    form = page.get_by_role("dialog")

    for label in ("Base URL", "Token", "Port"):
        expect(form.get_by_text(label, exact=True)).to_be_visible()
    for hidden in ("Login", "Schema"):
        expect(form.get_by_text(hidden, exact=True)).to_have_count(0)
    page.locator("input[name=host]").fill(service.url)
    page.locator("input[name=password]").fill(service.token)
    page.locator("input[name=port]").fill(str(urlsplit(service.url).port))
    form.get_by_role("button", name="Extra Fields", exact=True).click()
    for label in ("Source", "Verify TLS", "CA bundle", "Proxies", "Idle timeout (s)", "Polling ceiling (requests/s)"):
        expect(form.get_by_text(label, exact=True)).to_be_visible()
    page.locator("[name=element_source]").fill(service.source)
    form.get_by_role("button", name="Save").click()

    expect(page.get_by_role("row", name="qure_default")).to_contain_text(service.url)


def add(airflow, conn_id, url, token, source):
    # Airflow 3.3.1 and 3.3.2 test no connection without a port.
    port = urlsplit(url).port or 80
    airflow.api.add_connection(conn_id, conn_type="qure", host=url, port=port, password=token, extra={"source": source})


def say(page, conn_id):
    """Press the Test button; what the notification says."""
    page.goto("/connections")
    button = page.get_by_role("row", name=conn_id).get_by_role("button", name="Test Connection")
    expect(button).to_be_enabled()
    button.click()
    toast = page.get_by_role("status").filter(has_text="Test Connection")
    expect(toast).to_be_visible()
    return " ".join(toast.inner_text().split())


def test_the_test_button_says_that_all_is_well(page):
    assert say(page, "qure_default") == ("Test Connection Successful The service answers and takes token and Source.")


def test_the_test_button_says_what_to_mend(page, airflow, service):
    url, token, source = service.url, service.token, service.source
    for conn_id, settings, advice in (
        ("wrong_token", (url, "wrong", source), "Enter the token that Qure issued"),
        ("wrong_source", (url, token, "wrong"), "Enter the Source that Qure issued"),
        ("unreachable", ("http://127.0.0.1:9", token, source), "Check base URL, proxies and firewall"),
        ("plain_http", ("http://qure.example", token, source), "Enter an https:// URL"),
        ("wrong_path", (f"{url}/wrong", token, source), "Check the path of the base URL"),
    ):
        add(airflow, conn_id, *settings)
        said = say(page, conn_id)
        assert said.startswith("Test Connection Failed")
        assert advice in said
        assert token not in said


@pytest.fixture(scope="module")
def run_id(page, airflow, service, export):
    """A run of one image, triggered in the form; it has ended."""
    plan_findings(service, export.resources)
    (image,) = (file.path for file in export.files if file.what == "chest X-ray, planned to be abnormal")
    page.goto(f"/dags/{DAG_ID}")
    page.get_by_role("button", name="Trigger").first.click()
    form = page.get_by_role("dialog")
    for described in (
        "A folder of DICOM files, read with everything below it; a path or an object-storage URL.",
        "Paths relative to the folder, one a line. Empty: all of it.",
        "The id of an Airflow connection of type Qure.ai.",
        "Send and compute again what an earlier run finished: a new revision, delivered again.",
    ):
        expect(form.get_by_text(described)).to_be_visible()
    trigger = form.get_by_role("button", name="Trigger")
    folder = page.locator("[name=element_export]")
    folder.fill("")
    expect(trigger).to_be_disabled()
    folder.fill(str(export.folder))
    expect(trigger).to_be_enabled()
    page.locator("[name=element_files]").fill(image)
    trigger.click()
    expect(form).to_have_count(0)
    (run,) = airflow.api.get(f"dags/{DAG_ID}/dagRuns")["dag_runs"]
    deadline = 150
    for _ in range(deadline):
        airflow.check()
        if airflow.api.run_state(DAG_ID, run["dag_run_id"]) in ("success", "failed"):
            break
        page.wait_for_timeout(1 * SECONDS)
    return run["dag_run_id"]


def test_a_run_is_triggered_in_the_form(airflow, run_id):
    assert airflow.api.run_state(DAG_ID, run_id) == "success"


@pytest.fixture
def problems(page):
    """What the browser complains of, blocked styles and pictures among it."""
    found = []
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    return found


def test_the_task_links_to_the_nights_page(page, run_id, problems):
    page.goto(f"/dags/{DAG_ID}/runs/{quote(run_id)}/tasks/process_export.summarize/details")
    page.get_by_role("link", name="Night's summary").click()

    expect(page).to_have_title(re.compile(r"^Night \d{4}-\d{2}-\d{2}$"))
    problems.clear()
    page.reload()
    expect(page.get_by_text("SIMULATED: this comes from an emulator")).to_be_visible()
    expect(page.get_by_text("AI output, not verified by a radiologist")).to_be_visible()
    expect(page.locator("tbody tr").first).to_contain_text("qxr")
    expect(page.locator("tbody tr").first).to_contain_text("abnormal")
    drawn = page.evaluate("Promise.all([...document.images].map(image => image.decode().then(() => image.alt)))")
    assert len(drawn) == 1
    assert page.evaluate("getComputedStyle(document.querySelector('.note')).borderLeftWidth") == "5px"
    assert problems == []


def test_the_page_fits_a_phone(page, run_id):
    page.set_viewport_size({"width": 375, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.set_viewport_size({"width": 1400, "height": 1000})


def test_a_result_and_its_files_open(page, problems):
    page.get_by_role("link", name=re.compile(r"^\d+ files$")).click()
    expect(page.get_by_role("heading", name="Result")).to_be_visible()
    for name, content_type in (("report_pdf.pdf", "application/pdf"), ("sc_full_png.png", "image/png")):
        answer = page.request.get(page.url + name)
        assert (answer.status, answer.headers["content-type"]) == (200, content_type)
    with page.expect_download() as download:
        page.get_by_role("link", name="sc.dcm").click()
    assert download.value.path().read_bytes()[128:132] == b"DICM"
    assert re.fullmatch(r"[0-9a-f]{10}-[0-9a-f]{10}-sc\.dcm", download.value.suggested_filename)
    assert problems == []


def test_the_menu_leads_to_all_nights(page, run_id):
    page.goto("/")
    page.get_by_role("button", name="Browse").click()
    with page.context.expect_page() as opened:
        page.get_by_role("menuitem", name="Qure nights").click()
    nights = opened.value

    expect(nights.get_by_role("heading", name="Qure nights")).to_be_visible()
    expect(nights.locator("tbody tr")).to_have_count(1)
    expect(nights.locator("tbody tr")).to_contain_text(DAG_ID)
    nights.close()


def test_who_is_not_logged_in_is_asked_to_and_brought_back(browser, page, airflow, run_id):
    page.goto("/qure/")
    page.locator("tbody a").first.click()
    address = page.url
    context = browser.new_context(base_url=airflow.url, locale="en-US")
    stranger = context.new_page()
    assert stranger.request.get(address, max_redirects=0).status == 401

    stranger.goto(address)
    assert urlsplit(stranger.url).path.startswith(LOGIN)
    log_in(stranger, airflow)

    expect(stranger).to_have_url(address)
    expect(stranger).to_have_title(re.compile("^Night "))
    context.close()
