"""Which series are sent, and a reason for every file that is not."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Literal

from qure_provider.api.model import Route
from qure_provider.dicom.model import Fate, Instance, PassedOver, Scan, SelectedSeries, Selection, Series
from qure_provider.dicom.reasons import may_be_dicom

ROUTES: Mapping[str, Route] = {"CR": Route.XRAY, "DX": Route.XRAY, "CT": Route.CT}
"""Which half of the contract a modality follows; no other modality has one."""

IMAGE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # Digital X-Ray, for processing
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
)
"""The SOP classes that are sent unless the rules name others. Which ones the service takes is not stated anywhere."""

SOFT_KERNELS = (
    *("STANDARD", "STND", "SOFT", "DETAIL"),
    *("B[1-4]*", "H[1-4]*", "J[1-4]*", "BR[1-4]*", "HR[1-4]*", "QR[1-4]*", "I[1-4]*"),
    *("A", "B", "C", "UA", "UB", "UC", "BRAIN*"),
    *("FC0*", "FC1*", "FC2[0-8]", "FC4[1-4]", "FC6[4-8]"),
)
"""How the larger makers name their soft-tissue kernels (GE, Siemens, Philips, Canon)."""

_NO_CONTRAST = frozenset({"", "NONE", "NO", "N", "NO CONTRAST", "WITHOUT", "WITHOUT CONTRAST", "NATIVE", "-"})
_LOCALIZERS = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM"})
_SCREEN_SAVES = frozenset({"SCREEN SAVE", "SCREENSAVE", "SCREEN_SAVE"})
_SAME_REGION = 0.5


class Reason(StrEnum):
    """Why a series, or one of its files, is not sent."""

    NOT_AN_IMAGE = "no image that is sent (a report, presentation state, segmentation, secondary capture or the like)"
    MODALITY = "modality not selected"
    BODY_PART = "body part not selected"
    NO_BODY_PART = "body part not stated"
    LOCALIZER = "localizer"
    SCREEN_SAVE = "screen save"
    TOO_FEW_SLICES = "fewer slices than the minimum"
    TOO_MANY_INSTANCES = "more instances than the maximum"
    TOO_YOUNG = "patient younger than the minimum age"
    NO_AGE = "patient's age not stated"
    RECONSTRUCTION = "another reconstruction of the same body region is sent"
    INCOMPLETE = "files of this CT series are quarantined: it would be sent incomplete"


@dataclass(frozen=True, slots=True)
class SelectionRules:
    r"""What a site sends. The defaults send every chest, head or limb image that can have a result, and nothing twice.

    DERIVED images are never left out for being so: real chest films are ``DERIVED\PRIMARY``.

    Attributes:
        modalities: Modalities to send, among CR, DX and CT.
        body_parts: BodyPartExamined values to send, in any case; empty for any. Where given, a series that does not
            state its body part is not sent.
        sop_classes: SOP Class UIDs to send. Add Secondary Capture here where a site's films come as such.
        minimum_slices: Images that a CT series must have; 10 leaves out dose sheets, single slices and bolus tracking,
            and keeps a head of 10 mm slices.
        maximum_instances: Objects that a series may have; None for any number.
        minimum_age: In years; None for any. Where given, a patient of unknown age is not sent.
        localizers: Whether localizers are sent.
        reconstructions: ``best`` sends one CT series for each body region of a study, ``all`` sends every one.
        preferred_thickness: The slice thickness, in mm, that the best reconstruction is closest to.
        preferred_kernels: Patterns (``*``, ``?``, ``[1-4]``) of ConvolutionKernel that the best reconstruction has.
        incomplete_ct: What becomes of a CT series of which files are quarantined, or may be (a file without a readable
            header lies among its own, and no other series does, or a number of its images is missing): ``hold``
            quarantines the rest, because a result on a part of it would read like one on the whole; ``send`` sends what
            there is.
    """

    modalities: tuple[str, ...] = tuple(ROUTES)
    body_parts: tuple[str, ...] = ()
    sop_classes: tuple[str, ...] = IMAGE_CLASSES
    minimum_slices: int = 10
    maximum_instances: int | None = None
    minimum_age: float | None = None
    localizers: bool = False
    reconstructions: Literal["best", "all"] = "best"
    preferred_thickness: float = 1.25
    preferred_kernels: tuple[str, ...] = SOFT_KERNELS
    incomplete_ct: Literal["hold", "send"] = "hold"

    def __post_init__(self) -> None:
        if strange := sorted(set(self.modalities) - set(ROUTES)):
            raise ValueError(f"modalities: the service has no route for {strange}; choose among {list(ROUTES)}")
        if not self.modalities:
            raise ValueError(f"modalities: name at least one of {list(ROUTES)}")
        if self.reconstructions not in ("best", "all"):
            raise ValueError(f"reconstructions: 'best' or 'all', not {self.reconstructions!r}")
        if self.incomplete_ct not in ("hold", "send"):
            raise ValueError(f"incomplete_ct: 'hold' or 'send', not {self.incomplete_ct!r}")
        if self.maximum_instances is not None and self.maximum_instances < 1:
            raise ValueError("maximum_instances: at least 1, or null for any number")
        for name in ("minimum_slices", "minimum_age", "preferred_thickness"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}: cannot be negative")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> SelectionRules:
        """Makes rules of plain JSON values, a DAG's parameters for one.

        Args:
            values: Attribute names of this class with lists, numbers, booleans, strings or None; what is absent keeps
                its default.

        Returns:
            The rules.

        Raises:
            ValueError: If a name is unknown, or a value is of the wrong type or range; the message names it and what is
                expected.
        """
        known = {field.name for field in fields(cls)}
        if strange := sorted(str(name) for name in values if name not in known):
            raise ValueError(f"unknown selection rule {', '.join(strange)}; the rules are {', '.join(sorted(known))}")
        return cls(**{name: _typed(name, value) for name, value in values.items()})


def select(scan: Scan, rules: SelectionRules | None = None, known: Collection[str] = ()) -> Selection:
    """Applies the rules to what an export holds.

    A multi-frame (enhanced) CT counts each frame as a slice. Its orientation and thickness, which such objects state
    for each frame, are not looked into: it ranks behind a classic series of the same region.

    Args:
        scan: What the export holds.
        rules: What the site sends; None for the defaults.
        known: Series Instance UIDs of which images were sent before: late ones are sent however few they are.

    Returns:
        What is sent, in the order of the scan, and one row for each file of ``scan.series`` that is not. Nothing of
        ``scan.passed_over`` is repeated.
    """
    rules = rules or SelectionRules()
    wounded = _wounded(scan) if rules.incomplete_ct == "hold" else set()
    lost = Counter(row.series_instance_uid for row in scan.passed_over if row.fate is Fate.QUARANTINED)
    candidates: list[SelectedSeries] = []
    passed_over: list[PassedOver] = []
    for series in scan.series:
        images = tuple(each for each in series.instances if each.sop_class_uid in rules.sop_classes)
        reason = _refusal(series, images, rules)
        is_held = ROUTES.get(series.modality) is Route.CT and series.series_instance_uid in wounded
        if is_held and _is_short_for_what_it_lost(reason, images, lost[series.series_instance_uid], rules):
            reason = None
        if reason and not (reason is Reason.TOO_FEW_SLICES and series.series_instance_uid in known):
            passed_over += _rows(series, Fate.NOT_SELECTED, reason)
            continue
        if len(images) < len(series.instances):
            others = tuple(each for each in series.instances if each.sop_class_uid not in rules.sop_classes)
            passed_over += _rows(replace(series, instances=others), Fate.NOT_SELECTED, Reason.NOT_AN_IMAGE)
            series = replace(series, instances=images)
        route = ROUTES[series.modality]
        if is_held:
            passed_over += _rows(series, Fate.QUARANTINED, Reason.INCOMPLETE)
            continue
        candidates.append(SelectedSeries(series, route))
    if rules.reconstructions == "best":
        candidates, beaten = _best(candidates, rules)
        for series in beaten:
            passed_over += _rows(series, Fate.NOT_SELECTED, Reason.RECONSTRUCTION)
    return Selection(tuple(candidates), tuple(passed_over))


def _wounded(scan: Scan) -> set[str]:
    """Series of which files are quarantined, or may be: a file that does not say what it is lies among theirs."""
    quarantined = [row for row in scan.passed_over if row.fate is Fate.QUARANTINED]
    suspects = {
        _folder(row.path) for row in quarantined if not row.series_instance_uid and may_be_dicom(row.path, row.reason)
    }
    neighbours: dict[str, list[Series]] = defaultdict(list)
    for series in scan.series:
        for folder in {_folder(each.path) for each in series.instances} & suspects:
            neighbours[folder].append(series)
    by_place = {
        series.series_instance_uid
        for group in neighbours.values()
        for series in group
        if len(group) == 1 or _has_gap(series)
    }
    return ({row.series_instance_uid for row in quarantined} | by_place) - {""}


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _has_gap(series: Series) -> bool:
    """Whether a number between the first and the last image's is missing."""
    numbers = {each.instance_number for each in series.instances if each.instance_number is not None}
    return bool(numbers) and max(numbers) - min(numbers) + 1 > len(numbers)


def _refusal(series: Series, images: tuple[Instance, ...], rules: SelectionRules) -> Reason | None:
    """Why none of a series is sent; None where it is."""
    if series.modality not in rules.modalities:
        return Reason.MODALITY
    if not images:
        return Reason.NOT_AN_IMAGE
    kinds = {value.strip().upper() for value in series.image_type}
    if kinds & _SCREEN_SAVES:
        return Reason.SCREEN_SAVE
    if kinds & _LOCALIZERS and not rules.localizers:
        return Reason.LOCALIZER
    if rules.body_parts and series.body_part.upper() not in {part.strip().upper() for part in rules.body_parts}:
        return Reason.BODY_PART if series.body_part else Reason.NO_BODY_PART
    if rules.minimum_age is not None:
        if series.patient_age is None:
            return Reason.NO_AGE
        if series.patient_age < rules.minimum_age:
            return Reason.TOO_YOUNG
    if rules.maximum_instances is not None and len(images) > rules.maximum_instances:
        return Reason.TOO_MANY_INSTANCES
    slices = sum(image.frames for image in images)
    if ROUTES[series.modality] is Route.CT and slices < rules.minimum_slices:
        return Reason.TOO_FEW_SLICES
    return None


def _is_short_for_what_it_lost(
    reason: Reason | None, images: tuple[Instance, ...], lost: int, rules: SelectionRules
) -> bool:
    """Whether a CT series has too few slices only because files of it are quarantined."""
    return reason is Reason.TOO_FEW_SLICES and sum(image.frames for image in images) + lost >= rules.minimum_slices


def _rows(series: Series, fate: Fate, reason: Reason) -> Iterable[PassedOver]:
    return (
        PassedOver(each.path, fate, reason.value, each.size, series.series_instance_uid) for each in series.instances
    )


def _best(candidates: list[SelectedSeries], rules: SelectionRules) -> tuple[list[SelectedSeries], list[Series]]:
    """Keeps, of the CT series that show the same region of the same study, the one that ranks first."""
    frames: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for each in candidates:
        if each.route is Route.CT:
            series = each.series
            frames[series.identity.study_instance_uid, series.frame_of_reference_uid].append(series)
    rivals: dict[str, int] = {}
    for group in frames.values():
        winners: list[Series] = []
        for series in sorted(group, key=lambda series: _rank(series, rules)):
            winner = next((winner for winner in winners if _same_region(winner, series)), None)
            if winner:
                rivals[winner.series_instance_uid] += 1
            else:
                winners.append(series)
                rivals[series.series_instance_uid] = 0
    kept: list[SelectedSeries] = []
    beaten: list[Series] = []
    for each in candidates:
        beats = rivals.get(each.series.series_instance_uid) if each.route is Route.CT else 0
        if beats is None:
            beaten.append(each.series)
        elif beats:
            reason = f"best of {beats + 1} reconstructions: {_in_words(each.series, rules)}"
            kept.append(replace(each, reason=reason))
        else:
            kept.append(each)
    return kept, beaten


def _rank(series: Series, rules: SelectionRules) -> tuple[Any, ...]:
    """Sorts the best first."""
    thickness = series.slice_thickness
    return (
        {True: 0, None: 1, False: 2}[series.is_axial],
        not _is_original(series),
        _has_contrast(series),
        math.inf if thickness is None else abs(thickness - rules.preferred_thickness),
        not _has_preferred_kernel(series, rules),
        -series.images,
        series.series_instance_uid,
    )


def _in_words(series: Series, rules: SelectionRules) -> str:
    thickness = series.slice_thickness
    return ", ".join(
        (
            {True: "axial", None: "orientation not stated", False: "not axial"}[series.is_axial],
            "original" if _is_original(series) else "derived",
            "contrast" if _has_contrast(series) else "no contrast",
            "thickness not stated" if thickness is None else f"{thickness:g} mm",
            "preferred kernel" if _has_preferred_kernel(series, rules) else "other kernel",
            f"{series.images} slices",
        )
    )


def _is_original(series: Series) -> bool:
    return series.image_type[:1] == ("ORIGINAL",)


def _has_contrast(series: Series) -> bool:
    return series.contrast_agent.strip().upper() not in _NO_CONTRAST


def _has_preferred_kernel(series: Series, rules: SelectionRules) -> bool:
    kernel = series.convolution_kernel.partition("\\")[0].strip().upper()
    return any(fnmatchcase(kernel, pattern.upper()) for pattern in rules.preferred_kernels)


def _same_region(winner: Series, other: Series) -> bool:
    """Whether two series of one frame of reference surely show the same part of the body.

    Head and chest of one study often share a frame of reference and sometimes, wrongly, a body part; a series that
    shows both is a rival of neither. Where nothing tells, the answer is no and both are sent.
    """
    if winner.body_part and other.body_part and winner.body_part != other.body_part:
        return False
    if winner.extent is None or other.extent is None:
        return bool(winner.body_part) and winner.body_part == other.body_part
    (low, high), (other_low, other_high) = winner.extent, other.extent
    shared = min(high, other_high) - max(low, other_low)
    if winner.is_axial and other.is_axial is False:
        # A reformat's images reach beyond what was scanned.
        return shared >= _SAME_REGION * min(high - low, other_high - other_low)
    return shared >= _SAME_REGION * (max(high, other_high) - min(low, other_low))


def _typed(name: str, value: Any) -> Any:
    """The value as the rule's own type."""
    match name:
        case "modalities" | "body_parts" | "sop_classes" | "preferred_kernels":
            if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
                return tuple(value)
            expected = "a list of strings"
        case "minimum_slices":
            if type(value) is int:
                return value
            expected = "a whole number"
        case "maximum_instances":
            if value is None or type(value) is int:
                return value
            expected = "a whole number or null"
        case "minimum_age":
            if value is None or type(value) in (int, float):
                return value
            expected = "a number of years or null"
        case "preferred_thickness":
            if type(value) in (int, float):
                return float(value)
            expected = "a number of millimetres"
        case "localizers":
            if isinstance(value, bool):
                return value
            expected = "true or false"
        case _:
            if isinstance(value, str):
                return value
            expected = "a string"
    raise ValueError(f"selection rule {name}: expected {expected}, not {value!r}")
