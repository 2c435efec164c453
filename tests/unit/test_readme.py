import configparser
import json
import re
from pathlib import Path

import pytest
from airflow.sdk import DAG

README = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("sample", blocks("python"))
def test_its_samples_make_a_dag(sample):
    with DAG("sample") as dag:
        exec(compile(sample, "README.md", "exec"), {})
    assert dag.tasks
    assert dag.topological_sort()


def test_its_settings_are_options_with_nothing_but_their_values():
    (sample,) = blocks("ini")
    settings = configparser.RawConfigParser()
    settings.read_string(sample)
    from qure_provider.get_provider_info import get_provider_info

    assert set(settings["qure"]) <= set(get_provider_info()["config"]["qure"]["options"])
    assert settings["qure"]["identity_policy"] == ""  # nobody decides that by copying
    assert not any("#" in value for value in settings["qure"].values())
    assert json.loads(settings["qure"]["notifiers"])[0]["path"]


def test_the_files_that_it_leads_to_are_there():
    root = Path(__file__).parents[2]
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (root / target).exists(), target
