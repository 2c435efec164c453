import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qure_provider.api.model import Route
from qure_provider.dicom.manifest import VERSION, ManifestError, dump_batch, load_batch
from qure_provider.dicom.model import Batch, Identity, Instance, SelectedSeries, Series
from qure_provider.dicom.pack import pack_batches
from qure_provider.dicom.scan import scan
from qure_provider.dicom.select import select

texts = st.text(max_size=12) | st.binary(max_size=6).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
numbers = st.floats(allow_nan=False, allow_infinity=False)
instances = st.builds(
    Instance, texts, st.integers(0), numbers, texts, texts, texts, st.none() | st.integers(), st.integers(1)
)
batches = st.builds(
    Batch,
    st.just(Route.CT),
    st.lists(
        st.builds(
            SelectedSeries,
            st.builds(
                Series,
                identity=st.builds(Identity, *[texts] * 7),
                series_instance_uid=texts,
                modality=texts,
                instances=st.lists(instances, max_size=3).map(tuple),
                acquired=texts,
                image_type=st.lists(texts, max_size=3).map(tuple),
                patient_age=st.none() | numbers,
                slice_thickness=st.none() | numbers,
                is_axial=st.none() | st.booleans(),
                extent=st.none() | st.tuples(numbers, numbers),
                warnings=st.lists(texts, max_size=2).map(tuple),
            ),
            st.just(Route.CT),
            texts,
        ),
        max_size=3,
    ).map(tuple),
)


def passed_on(content):
    """As a file that another process reads."""
    return json.loads(json.dumps(content).encode("ascii"))


@given(batches)
def test_a_batch_comes_back_as_it_was(batch):
    assert load_batch(passed_on(dump_batch(batch))) == batch


def test_a_real_one(export):
    export.add_series("ct", BodyPartExamined="HEAD")
    export.add("film", "DX", SOPInstanceUID="1.2.03")
    for batch in pack_batches(select(scan(export.root)).selected, 2):
        assert load_batch(passed_on(dump_batch(batch))) == batch
        assert load_batch(dump_batch(batch)) == batch


def sample():
    instance = Instance("a", 1, 2.0, "1.2", "1.3", "1.4", 5)
    series = Series(Identity("1.1"), "1.5", "CT", (instance,), extent=(0.0, 1.0))
    return passed_on(dump_batch(Batch(Route.CT, (SelectedSeries(series, Route.CT),))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("version"), "no batch manifest"),
        (lambda content: content.update(version="1"), "no batch manifest"),
        (lambda content: content.update(version=VERSION + 1), "upgrade airflow-provider-qure on this worker"),
        (lambda content: content.update(version=0), "plan the export again"),
        (lambda content: content.update(route="mr"), "damaged"),
        (lambda content: content.pop("series"), "damaged"),
        (lambda content: content.update(instance_columns=["path"]), "damaged"),
        (lambda content: content["series"][0].pop("identity"), "damaged"),
        (lambda content: content["series"][0].update(identity=None), "damaged"),
        (lambda content: content["series"][0]["identity"].pop("patient_id"), "damaged"),
        (lambda content: content["series"][0]["identity"].update(patient_id=7), "damaged"),
        (lambda content: content["series"][0].update(modality=None), "damaged"),
        (lambda content: content["series"][0].update(is_axial="yes"), "damaged"),
        (lambda content: content["series"][0].update(patient_age="54"), "damaged"),
        (lambda content: content["series"][0].update(image_type="AXIAL"), "damaged"),
        (lambda content: content["series"][0].update(extent=[1.0]), "damaged"),
        (lambda content: content["series"][0].update(instances=[["a"]]), "damaged"),
        (lambda content: content["series"][0]["instances"][0].__setitem__(4, -1), "damaged"),
        (lambda content: content["series"][0]["instances"][0].__setitem__(4, 99), "damaged"),
        (lambda content: content["series"][0]["instances"][0].__setitem__(1, "large"), "damaged"),
        (lambda content: content["series"][0]["instances"][0].__setitem__(6, "one"), "damaged"),
    ],
)
def test_what_is_no_manifest_of_ours_is_refused(change, words):
    content = sample()
    change(content)
    with pytest.raises(ManifestError, match=words):
        load_batch(content)


@pytest.mark.parametrize("content", [None, [], "x", 3, {}])
def test_what_is_no_manifest_at_all(content):
    with pytest.raises(ManifestError, match="plan the export again"):
        load_batch(content)


def test_an_error_quotes_nothing():
    content = sample()
    content["series"][0]["identity"]["patient_id"] = ["SECRET"]
    with pytest.raises(ManifestError) as caught:
        load_batch(content)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_three_thousand_studies_are_quick():
    series = [
        SelectedSeries(
            Series(
                Identity(f"1.1.{number}", "SIM"),
                f"1.5.{number}",
                "CT",
                tuple(Instance(f"{number}/{i}", 1, 2.0, f"1.2.{number}.{i}", "1.3", "1.4", i) for i in range(10)),
            ),
            Route.CT,
        )
        for number in range(3000)
    ]
    start = time.process_time()
    assert load_batch(passed_on(dump_batch(Batch(Route.CT, tuple(series))))).series == tuple(series)
    assert time.process_time() - start < 10
