"""``python -m chaos.worker``: one try of one step in a process of its own, which can be killed.

Its argument is JSON: the step, the run's id, where the store and the export lie, and the batch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from airflow.sdk.definitions.callback import AsyncCallback

from chaos.pager import PAGER_FILE
from chaos.place import Place


def main() -> None:
    """Run the step; says so before it begins."""
    order = json.loads(sys.argv[1])
    place = Place.__new__(Place)  # without the servers, which the parent runs
    place.root, place.export, place.pace = Path(order["root"]), Path(order["export"]), {}
    place.meanwhile = lambda: None
    os.environ[PAGER_FILE] = str(place.root.with_name("told"))
    place.pager = AsyncCallback("chaos.pager.FilePager", kwargs={"message": "{{ alert.study_ref }}"})
    place.new_run(order["run"])
    print("begins", flush=True)
    step = getattr(place, order["step"])
    step(*([order["batch"]] if order["batch"] else []))


if __name__ == "__main__":
    main()
