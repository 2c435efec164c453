"""The DAG that one would write first: a chain of tasks for each series, mapped over the night.

It is here to be compared with. It keeps no account of what it passes over, resumes nothing, and asks for every result
from a task of its own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, BaseHook, PokeReturnValue, task, task_group

POKE_SECONDS = 15
PENDING = frozenset({202, 404, 409})


def _ask(method: str, path: str, **request: Any) -> Any:
    import requests

    connection = BaseHook.get_connection("qure_default")
    headers = {
        "Authorization": f"Token {connection.password}",
        "Source": connection.extra_dejson["source"],
        "User-Agent": "naive",
        **request.pop("headers", {}),
    }
    return requests.request(method, f"{connection.host}/{path}", headers=headers, timeout=600, **request)


def _results(series: dict[str, Any]) -> list[str]:
    if series["modality"] == "CT":
        return [f"results/{series['uid']}"]
    return [f"results/v2/{uid}" for uid in series["images"]]


with DAG("naive_nightly", schedule=None, params={"export": "", "target": ""}) as dag:

    @task
    def list_series(params: Any = None) -> list[dict[str, Any]]:
        """Read every header and put the images together by series."""
        import pydicom
        from pydicom.errors import InvalidDicomError

        found: dict[str, dict[str, Any]] = {}
        images: dict[str, dict[str, str]] = defaultdict(dict)
        for path in sorted(path for path in Path(params["export"]).rglob("*") if path.is_file()):
            try:
                dataset = pydicom.dcmread(path, stop_before_pixels=True)
            except InvalidDicomError:
                continue
            if dataset.get("Modality") not in ("CR", "DX", "CT"):
                continue
            uid = dataset.SeriesInstanceUID
            found[uid] = {"uid": uid, "modality": dataset.Modality}
            images[uid][dataset.SOPInstanceUID] = str(path)
        return [{**series, "images": images[uid]} for uid, series in found.items()]

    @task
    def upload(series: dict[str, Any]) -> None:
        """Send all images of the series at once."""
        from requests_toolbelt.multipart.encoder import MultipartEncoder

        files = {path: (path, Path(path).open("rb"), "application/dicom") for path in series["images"].values()}  # noqa: SIM115
        encoder = MultipartEncoder(files)  # type: ignore[no-untyped-call]
        _ask("POST", "studies/", data=encoder, headers={"Content-Type": encoder.content_type}).raise_for_status()

    @task
    def compute(series: dict[str, Any]) -> None:
        """Have a CT series computed."""
        if series["modality"] == "CT":
            _ask("GET", f"compute/{series['uid']}").raise_for_status()

    @task.sensor(poke_interval=POKE_SECONDS, timeout=6 * 3600, mode="reschedule")
    def wait(series: dict[str, Any]) -> PokeReturnValue:
        """Ask until every result of the series is there."""
        return PokeReturnValue(all(_ask("GET", path).status_code not in PENDING for path in _results(series)))

    @task
    def fetch(series: dict[str, Any], params: Any = None) -> None:
        """Download every file of every result."""
        import requests

        for path in _results(series):
            answer = _ask("GET", path)
            if answer.status_code != requests.codes.ok:
                continue
            folder = Path(params["target"], path.rpartition("/")[2])
            folder.mkdir(parents=True, exist_ok=True)
            for kind, urls in answer.json()["result"]["files"].items():
                for number, url in enumerate(urls if isinstance(urls, list) else [urls]):
                    folder.joinpath(f"{kind}-{number}").write_bytes(requests.get(url, timeout=600).content)
            folder.joinpath("result.json").write_text(json.dumps(answer.json()), encoding="utf-8")

    @task_group
    def chain(series: Any) -> None:
        """All that becomes of one series."""
        upload(series) >> compute(series) >> wait(series) >> fetch(series)

    chain.expand(series=list_series())
