from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qure_provider.api.model import ResourceRef, Route
from qure_provider.dicom.model import Fate, Identity, Instance, PassedOver, Scan, Series
from qure_provider.dicom.reasons import Quarantine
from qure_provider.dicom.scan import scan
from qure_provider.dicom.select import IMAGE_CLASSES, Reason, SelectionRules, select

CR, DX, _, CT, ENHANCED_CT, _ = IMAGE_CLASSES
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
CLASSES = {"CR": CR, "DX": DX, "CT": CT}
numbers = count(1)


def series(modality="CT", images=30, *, study="1.9", sop_class=None, **values):
    number = next(numbers)
    sop_class = sop_class or CLASSES.get(modality, "1.2.840.10008.5.1.4.1.1.4")
    instances = tuple(
        Instance(f"{number}/{i}", 1000, 1.0, f"1.{number}.{i}", sop_class, "1.2.840.10008.1.2.1", i)
        for i in range(images)
    )
    defaults = {"is_axial": True, "image_type": ("ORIGINAL", "PRIMARY", "AXIAL"), "frame_of_reference_uid": "1.8"}
    return Series(
        identity=Identity(study), series_instance_uid=f"1.{number}", modality=modality, instances=instances,
        **{**(defaults if modality == "CT" else {}), **values},
    )  # fmt: skip


def scan_of(*members, passed_over=()):
    return Scan(sum(len(each.instances) for each in members) + len(passed_over), members, tuple(passed_over))


def selected(*members, **rules):
    """The series that are sent; the sums of the rest hold."""
    result = select(scan_of(*members), SelectionRules(**rules))
    paths = [each.path for item in result.selected for each in item.series.instances]
    paths += [row.path for row in result.passed_over]
    assert sorted(paths) == sorted(each.path for item in members for each in item.instances)
    return [each.series for each in result.selected]


def refused(*members, **rules):
    """The one reason why nothing of them is sent."""
    result = select(scan_of(*members), SelectionRules(**rules))
    assert not result.selected
    assert len(result.passed_over) == sum(len(each.instances) for each in members)
    ((fate, reason),) = {(row.fate, row.reason) for row in result.passed_over}
    assert fate is Fate.NOT_SELECTED
    return reason


class TestWhatIsSent:
    @pytest.mark.parametrize(("modality", "route"), [("CR", Route.XRAY), ("DX", Route.XRAY), ("CT", Route.CT)])
    def test_the_route_follows_the_modality(self, modality, route):
        (each,) = select(scan_of(series(modality))).selected
        assert each.route is route

    def test_a_result_for_each_image_or_for_the_series(self):
        xray, ct = select(scan_of(series("CR", 2), series("CT"))).selected
        assert xray.resources == tuple(ResourceRef(each.sop_instance_uid, Route.XRAY) for each in xray.series.instances)
        assert ct.resources == (ResourceRef(ct.series.series_instance_uid, Route.CT),)

    def test_derived_chest_films_are_sent(self):
        film = series("DX", 1, image_type=("DERIVED", "PRIMARY"))
        assert selected(film) == [film]

    @pytest.mark.parametrize("modality", ["MR", "SR", "PR", "KO", "SEG", "RTSTRUCT", "OT", "MG", "XA", "", "??"])
    def test_other_modalities_are_not(self, modality):
        assert refused(series(modality)) == Reason.MODALITY

    def test_objects_of_a_ct_that_are_no_ct_images(self):
        assert refused(series("CT", sop_class=SECONDARY_CAPTURE)) == Reason.NOT_AN_IMAGE

    def test_a_dose_sheet_inside_a_series_stays_behind(self):
        ct = series("CT", 20)
        sheet = replace(ct.instances[0], path="sheet", sop_class_uid=SECONDARY_CAPTURE, sop_instance_uid="1.7.7")
        mixed = replace(ct, instances=(*ct.instances, sheet))
        result = select(scan_of(mixed))
        assert result.selected[0].series == ct
        assert result.passed_over == (
            PassedOver("sheet", Fate.NOT_SELECTED, Reason.NOT_AN_IMAGE, 1000, ct.series_instance_uid),
        )

    def test_a_site_may_send_secondary_captures(self):
        film = series("CR", 1, sop_class=SECONDARY_CAPTURE)
        assert selected(film, sop_classes=(*IMAGE_CLASSES, SECONDARY_CAPTURE)) == [film]

    @pytest.mark.parametrize("kind", ["LOCALIZER", "SCOUT", " localizer "])
    def test_localizers(self, kind):
        localizer = series(image_type=("ORIGINAL", "PRIMARY", kind))
        assert refused(localizer) == Reason.LOCALIZER
        assert selected(localizer, localizers=True) == [localizer]

    def test_screen_saves(self):
        assert refused(series(image_type=("DERIVED", "SECONDARY", "SCREEN SAVE"))) == Reason.SCREEN_SAVE

    def test_minimum_slices_are_for_ct_only(self):
        assert refused(series("CT", 9)) == Reason.TOO_FEW_SLICES
        assert len(selected(series("CT", 10), series("CR", 1))) == 2
        assert refused(series("CT", 39), minimum_slices=40) == Reason.TOO_FEW_SLICES

    def test_frames_of_an_enhanced_ct_are_slices(self):
        ct = series("CT", 1, sop_class=ENHANCED_CT)
        assert refused(ct) == Reason.TOO_FEW_SLICES
        many = replace(ct, instances=(replace(ct.instances[0], frames=200),))
        assert selected(many) == [many]

    def test_body_parts(self):
        chest, head, unknown = (series("DX", 1, body_part=part) for part in ("CHEST", "HEAD", ""))
        assert selected(chest, head, unknown) == [chest, head, unknown]
        assert selected(chest, body_parts=("chest ",)) == [chest]
        assert refused(head, body_parts=("CHEST",)) == Reason.BODY_PART
        assert refused(unknown, body_parts=("CHEST",)) == Reason.NO_BODY_PART

    def test_age(self):
        assert len(selected(series(patient_age=3.0), series(patient_age=None), reconstructions="all")) == 2
        assert refused(series(patient_age=17.9), minimum_age=18) == Reason.TOO_YOUNG
        assert refused(series(patient_age=None), minimum_age=18) == Reason.NO_AGE
        assert len(selected(series(patient_age=18.0), minimum_age=18)) == 1

    def test_maximum_instances(self):
        assert refused(series("CT", 31), maximum_instances=30) == Reason.TOO_MANY_INSTANCES
        assert len(selected(series("CT", 30), maximum_instances=30)) == 1

    def test_modalities(self):
        assert refused(series("CT"), modalities=("DX",)) == Reason.MODALITY


class TestIncompleteSeries:
    def wounded(self, modality):
        member = series(modality, 20)
        row = PassedOver("x", Fate.QUARANTINED, Quarantine.TRUNCATED, 9, member.series_instance_uid)
        return member, scan_of(member, passed_over=[row])

    def test_a_ct_series_with_a_broken_slice_is_held(self):
        member, result = self.wounded("CT")
        selection = select(result)
        assert not selection.selected
        assert {(row.fate, row.reason) for row in selection.passed_over} == {(Fate.QUARANTINED, Reason.INCOMPLETE)}
        assert len(selection.passed_over) == len(member.instances)

    @pytest.mark.parametrize(("lost", "reason"), [(1, Reason.TOO_FEW_SLICES), (2, Reason.INCOMPLETE)])
    def test_one_that_would_have_enough_slices_with_those_is_held_and_not_called_too_short(self, lost, reason):
        member = series("CT", 8)
        rows = [PassedOver(f"x{n}", Fate.QUARANTINED, "broken", 9, member.series_instance_uid) for n in range(lost)]
        selection = select(scan_of(member, passed_over=rows))
        assert {row.reason for row in selection.passed_over} == {reason}

    def test_or_sent_where_the_site_says_so(self):
        member, result = self.wounded("CT")
        assert select(result, SelectionRules(incomplete_ct="send")).selected[0].series == member

    def test_the_other_images_of_an_xray_series_are_results_of_their_own(self):
        member, result = self.wounded("DX")
        assert select(result).selected[0].series == member

    def test_another_reconstruction_takes_its_place(self):
        member, result = self.wounded("CT")
        other = series(body_part=member.body_part, slice_thickness=5.0)
        both = replace(result, series=(member, other), found=result.found + len(other.instances))
        assert [each.series for each in select(both).selected] == [other]

    def unread(self, *members, path="1/x.dcm", reason=Quarantine.EMPTY):
        """A file that does not say what it is lies in a folder with these series."""
        row = PassedOver(path, Fate.QUARANTINED, reason, 0)
        return scan_of(*members, passed_over=[row])

    def in_one_folder(self, *members, folder="1"):
        return [
            replace(
                each,
                instances=tuple(replace(i, path=f"{folder}/{i.sop_instance_uid}") for i in each.instances),
            )
            for each in members
        ]

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("1/9.dcm", Quarantine.EMPTY),
            ("1/9.dcm.part", Quarantine.UNFINISHED),
            ("1/9", Quarantine.NOT_DICOM),
            ("1/9.17", Quarantine.NOT_DICOM),
            ("1/9.dcm", Quarantine.PERMISSION),
        ],
    )
    def test_a_file_that_could_be_its_own_holds_the_one_ct_series_of_its_folder(self, path, reason):
        (member,) = self.in_one_folder(series("CT", 20))
        assert not select(self.unread(member, path=path, reason=reason)).selected
        assert len(select(self.unread(member, path="2/" + path, reason=reason)).selected) == 1

    @pytest.mark.parametrize("reason", [Quarantine.EMPTY, Quarantine.NOT_DICOM])
    def test_a_text_beside_it_does_not(self, reason):
        (member,) = self.in_one_folder(series("CT", 20))
        assert len(select(self.unread(member, path="1/Export log.txt", reason=reason)).selected) == 1

    def test_among_several_series_only_one_that_lacks_an_image_is_held(self):
        whole, gapped = self.in_one_folder(series("CT", 20), series("CT", 21, study="1.7"))
        gapped = replace(gapped, instances=gapped.instances[:7] + gapped.instances[8:])
        (kept,) = select(self.unread(whole, gapped)).selected
        assert kept.series == whole

    def test_late_images_of_a_series_that_was_sent_go_however_few(self):
        late = series("CT", 3)
        assert not select(scan_of(late)).selected
        assert len(select(scan_of(late), known={late.series_instance_uid}).selected) == 1

    def test_a_duplicate_does_not_make_a_series_incomplete(self):
        member = series()
        row = PassedOver("x", Fate.DUPLICATE, "copy", 9, member.series_instance_uid)
        assert len(select(scan_of(member, passed_over=[row])).selected) == 1


def head(**values):
    return series(**{"body_part": "HEAD", "extent": (0.0, 150.0), "slice_thickness": 5.0, **values})


class TestBestReconstruction:
    @pytest.mark.parametrize(
        ("better", "worse"),
        [
            ({}, {"is_axial": False}),
            ({}, {"is_axial": None}),
            ({}, {"image_type": ("DERIVED", "SECONDARY", "AXIAL")}),
            ({}, {"contrast_agent": "OMNIPAQUE"}),
            ({"slice_thickness": 1.0}, {}),
            ({}, {"slice_thickness": None}),
            ({"convolution_kernel": "H31s"}, {"convolution_kernel": "H60s"}),
            ({"convolution_kernel": "STANDARD"}, {"convolution_kernel": "BONEPLUS"}),
            ({"images": 40}, {"images": 30}),
            ({"slice_thickness": 1.0, "convolution_kernel": "H60s"}, {"convolution_kernel": "H31s"}),
            ({}, {"slice_thickness": 1.0, "contrast_agent": "OMNIPAQUE"}),
            ({}, {"slice_thickness": 1.25, "image_type": ("DERIVED", "PRIMARY", "MPR")}),
        ],
    )
    def test_the_order_of_what_counts(self, better, worse):
        good, bad = head(**better), head(**worse)
        assert selected(good, bad) == [good]
        assert selected(bad, good) == [good]

    def test_the_preferences_are_settings(self):
        thick, thin = head(slice_thickness=5.0), head(slice_thickness=1.0)
        assert selected(thick, thin, preferred_thickness=5.0) == [thick]
        bone, soft = head(convolution_kernel="BONE"), head(convolution_kernel="SOFT")
        assert selected(bone, soft, preferred_kernels=("bo*",)) == [bone]

    def test_contrast_that_says_none(self):
        for word in ("", "NONE", "No"):
            native = head(contrast_agent=word, images=40)
            assert selected(native, head()) == [native]

    def test_the_choice_is_kept_in_words(self):
        chosen = head(slice_thickness=1.25, convolution_kernel="H31s")
        result = select(scan_of(head(), chosen, head(is_axial=False)))
        assert result.selected[0].reason == (
            "best of 3 reconstructions: axial, original, no contrast, 1.25 mm, preferred kernel, 30 slices"
        )
        assert {row.reason for row in result.passed_over} == {Reason.RECONSTRUCTION}

    def test_no_choice_no_reason(self):
        assert select(scan_of(head(), series("DX", 1))).selected[0].reason == ""

    def test_all_of_them_by_setting(self):
        assert len(selected(head(), head(), reconstructions="all")) == 2

    def test_xrays_are_never_rivals(self):
        assert len(selected(*(series("DX", 1, body_part="CHEST") for _ in range(3)))) == 3

    def test_studies_are_never_rivals(self):
        assert len(selected(head(study="1.1"), head(study="1.2"))) == 2

    def test_the_order_of_the_scan_is_kept(self):
        members = [series("DX", 1), head(study="1.1"), series("DX", 1), head(study="1.2")]
        assert selected(*members) == members


class TestHeadAndChestOfOneStudy:
    def test_by_body_part(self):
        both = [series(body_part="HEAD"), series(body_part="CHEST")]
        assert selected(*both) == both

    def test_by_frame_of_reference(self):
        both = [series(frame_of_reference_uid="1.1"), series(frame_of_reference_uid="1.2")]
        assert selected(*both) == both

    @pytest.mark.parametrize("part", ["HEAD", ""])
    def test_by_position_where_the_body_part_is_wrong_or_absent(self, part):
        both = [series(body_part=part, extent=(0, 150)), series(body_part=part, extent=(-450, -100))]
        assert selected(*both) == both

    def test_reconstructions_of_each_are_rivals(self):
        heads = [series(extent=(0, 150)), series(extent=(2, 148), slice_thickness=5.0)]
        chests = [series(extent=(-450, -100)), series(extent=(-440, -90), slice_thickness=1.0)]
        assert selected(*heads, *chests) == [heads[1], chests[1]]

    def test_a_series_over_both_is_a_rival_of_neither(self):
        everything = series(extent=(-450, 150))
        both = [series(extent=(0, 150)), series(extent=(-450, -260))]
        assert selected(*both, everything) == [*both, everything]

    def test_a_coronal_reformat_is_a_rival_of_what_it_was_made_of(self):
        axial = series(extent=(0, 150))
        assert selected(axial, series(extent=(-50, 200), is_axial=False)) == [axial]
        assert len(selected(axial, series(extent=(-450, -100), is_axial=False))) == 2

    def test_where_nothing_tells_both_are_sent(self):
        both = [series(extent=None, body_part=""), series(extent=None, body_part="")]
        assert selected(*both) == both

    def test_no_region_is_ever_lost(self):
        """Whatever is left out lies, at least half of it, in the range of a series that is sent."""

        @given(st.lists(st.tuples(st.integers(-500, 400), st.integers(1, 600), st.booleans()), max_size=8))
        def holds(ranges):
            members = [series(extent=(low, low + size), is_axial=axial) for low, size, axial in ranges]
            sent = selected(*members)
            for each in members:
                low, high = each.extent
                assert any(
                    2 * (min(high, other.extent[1]) - max(low, other.extent[0]))
                    >= min(high - low, other.extent[1] - other.extent[0])
                    for other in sent
                )

        holds()


class TestRules:
    def test_defaults(self):
        assert SelectionRules.from_mapping({}) == SelectionRules()

    def test_all_of_them_from_json(self):
        rules = SelectionRules.from_mapping(
            {
                "modalities": ["CT"],
                "body_parts": ["HEAD"],
                "sop_classes": [CT],
                "minimum_slices": 20,
                "maximum_instances": None,
                "minimum_age": 18,
                "localizers": True,
                "reconstructions": "all",
                "preferred_thickness": 5,
                "preferred_kernels": ["H31s"],
                "incomplete_ct": "send",
            }
        )
        assert (rules.modalities, rules.minimum_age, rules.preferred_thickness) == (("CT",), 18, 5.0)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"modality": ["CT"]}, "unknown selection rule modality; the rules are .*modalities"),
            ({"modalities": ["MR"]}, "no route for .*MR"),
            ({"modalities": []}, "at least one"),
            ({"modalities": "CT"}, "modalities: expected a list of strings"),
            ({"modalities": [1]}, "modalities: expected a list of strings"),
            ({"minimum_slices": "10"}, "minimum_slices: expected a whole number"),
            ({"minimum_slices": True}, "minimum_slices: expected a whole number"),
            ({"minimum_slices": -1}, "minimum_slices: cannot be negative"),
            ({"minimum_age": "18"}, "minimum_age: expected a number of years or null"),
            ({"maximum_instances": 0}, "maximum_instances: at least 1"),
            ({"localizers": "no"}, "localizers: expected true or false"),
            ({"reconstructions": "some"}, "reconstructions: 'best' or 'all'"),
            ({"reconstructions": ["all"]}, "reconstructions: expected a string"),
            ({"preferred_thickness": None}, "preferred_thickness: expected a number of millimetres"),
            ({"incomplete_ct": "drop"}, "incomplete_ct: 'hold' or 'send'"),
            ({3: 4}, "unknown selection rule 3"),
        ],
    )
    def test_what_is_wrong_is_said(self, values, words):
        with pytest.raises(ValueError, match=words):
            SelectionRules.from_mapping(values)


texts = st.text(max_size=8)


@given(
    st.lists(
        st.builds(
            Series,
            identity=st.builds(Identity, st.sampled_from(["1.1", "1.2"])),
            series_instance_uid=st.integers(1, 10**6).map(str),
            modality=st.sampled_from(["CT", "CR", "DX", "MR", ""]) | texts,
            instances=st.lists(
                st.builds(
                    Instance, st.uuids().map(str), st.integers(0, 9), st.just(1.0), texts,
                    st.sampled_from([CT, CR, DX, SECONDARY_CAPTURE]), texts, st.none(), st.integers(1, 30),
                ),
                min_size=1, max_size=4,
            ).map(tuple),
            body_part=texts,
            image_type=st.lists(texts, max_size=4).map(tuple),
            patient_age=st.none() | st.floats(0, 100),
            slice_thickness=st.none() | st.floats(0.1, 10),
            convolution_kernel=texts,
            contrast_agent=texts,
            is_axial=st.none() | st.booleans(),
            extent=st.none() | st.tuples(st.floats(-500, 0), st.floats(0, 500)),
        ),
        max_size=6, unique_by=lambda each: each.series_instance_uid,
    ),
    st.sampled_from([{}, {"minimum_age": 18}, {"body_parts": ("CHEST",)}, {"reconstructions": "all"}]),
)  # fmt: skip
def test_no_value_raises_and_every_file_is_somewhere(members, rules):
    selected(*members, **{"minimum_slices": 2, **rules})


def test_from_files_to_selection(export):
    export.add_series(
        "head/thin", SliceThickness=1.25, spacing=1.25, count=120, StudyInstanceUID="1.2", BodyPartExamined="HEAD"
    )
    export.add_series(
        "head/thick", SliceThickness=5, spacing=5, count=30, StudyInstanceUID="1.2", BodyPartExamined="HEAD"
    )
    export.add_series("chest", start=-500, spacing=5, count=60, StudyInstanceUID="1.2", BodyPartExamined="HEAD")
    export.add("chest.dcm", "DX", ImageType=["DERIVED", "PRIMARY"])
    export.add("report", "SR")
    result = select(scan(export.root))
    sent = {each.series.instances[0].path.rpartition("/")[0] for each in result.selected}
    assert sent == {"", "head/thin", "chest"}
