"""What becomes of each attribute when a study is de-identified, as data.

The ground is the Basic Application Level Confidentiality Profile (DICOM PS3.15, Table E.1-1), whose rows come from the
library dicom-anonymizer. Options of the same standard and a site's own choices are laid over it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from pydicom import config
from pydicom.datadict import get_entry, tag_for_keyword
from pydicom.valuerep import validate_value

EDITION = "2026c"
"""The edition of the standard whose table is used."""

DUMMY_TEXT = "ANONYMIZED"
"""What a text is replaced with where it may not be empty."""

DUMMY_DATE = "19000101"
"""What a date is replaced with where it may not be empty and is not shifted."""

CAPPED_AGE = "090Y"
"""What stands for every age from there on."""


class Action(StrEnum):
    """What is done to an attribute, or was."""

    KEEP = "kept"
    WITHIN = "kept, its items treated one by one"
    REMOVE = "removed"
    EMPTY = "emptied"
    DUMMY = "replaced by a dummy"
    UID = "replaced by a keyed UID"
    SHIFT = "shifted by the patient's number of days"
    REPLACE = "replaced by the site's value"
    PSEUDONYM = "replaced by a pseudonym"
    CAP = "capped at 90 years"
    CLEAN = "replaced: it held a value that identifies"
    ADD = "added"


class ProfileError(ValueError):
    """A profile that cannot be followed; the message names the setting and what is expected."""


_PATIENT_CHARACTERISTICS = (
    *("PatientAge", "PatientSex", "PatientSexNeutered", "PatientSize", "PatientWeight"),
    *("EthnicGroup", "PregnancyStatus", "SmokingStatus", "SelectorASValue"),
)
"""K in the column Rtn. Pat. Chars. Opt. What it has to be cleaned (C), such as allergies, is removed."""

_DEVICE_IDENTITY = (
    *("CassetteID", "DetectorID", "DeviceDescription", "DeviceLabel", "DeviceSerialNumber", "DeviceUID", "GantryID"),
    *("GeneratorID", "LensMake", "LensModel", "LensSerialNumber", "LensSpecification", "ManufacturerDeviceClassUID"),
    *("ManufacturerDeviceIdentifier", "ModifyingDeviceID", "ModifyingSystem", "PerformedStationName"),
    *("PerformedStationGeographicLocationCodeSequence", "PerformedStationNameCodeSequence", "PlateID"),
    *("ScheduledProcedureStepLocation", "ScheduledStationGeographicLocationCodeSequence", "ScheduledStationName"),
    *("ScheduledStationNameCodeSequence", "ScheduledStudyLocation", "SourceManufacturer", "SourceSerialNumber"),
    *("StationName", "TransducerIdentificationSequence", "TreatmentMachineName", "UDISequence"),
    *("UniqueDeviceIdentifier", "XRayDetectorID", "XRayDetectorLabel", "XRaySourceID"),
)
"""K in the column Rtn. Dev. Id. Opt. Its dates follow the rule for dates; AE titles (C) are removed."""

_NEVER_SHIFTED = frozenset({0x00100030, 0x00100032})
"""Birth date and time: the option for dates does not name them."""

_CATEGORIES: Mapping[str, tuple[Action, Action]] = {
    "X_TAGS": (Action.REMOVE, Action.REMOVE),
    "Z_TAGS": (Action.EMPTY, Action.EMPTY),
    "D_TAGS": (Action.DUMMY, Action.REMOVE),
    "U_TAGS": (Action.UID, Action.REMOVE),
    "Z_D_TAGS": (Action.DUMMY, Action.REMOVE),
    "X_Z_TAGS": (Action.EMPTY, Action.EMPTY),
    "X_D_TAGS": (Action.DUMMY, Action.REMOVE),
    "X_Z_D_TAGS": (Action.DUMMY, Action.REMOVE),
    "X_Z_U_STAR_TAGS": (Action.WITHIN, Action.WITHIN),
}
"""For each category of the library's table, what is done to an attribute and to a sequence.

Where the table lets the object's kind decide (X/D, say), the choice is the one that every kind allows. A sequence has
no dummy, so it is removed.
"""

_TEMPORAL = frozenset({"DA", "DT", "TM"})
_TEXTUAL = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT"})
_IDENTIFIES_BY_ITSELF = frozenset(
    {0x00080050, 0x00100020, 0x00100021, 0x00100030, 0x00101000, 0x00101001, 0x00101002, 0x00101005, 0x00101060}
)
_WRITTEN_BY_US = frozenset({0x00100010, 0x00100020, 0x00080050, 0x00120062, 0x00120063, 0x00120064, 0x00280303})
_NEEDED = frozenset({0x00080005, 0x00080016, 0x00080018, 0x00080060, 0x0020000D, 0x0020000E})
_PIXEL_GROUPS = frozenset({0x0028, 0x7FE0})
_TAG = re.compile(r"\(?([0-9a-fA-F]{4}),? ?([0-9a-fA-F]{4})\)?")
_PRIVATE_TAG = re.compile(r"\(?([0-9a-fA-F]{3}[13579bdfBDF]),? ?xx([0-9a-fA-F]{2})\)?")


@dataclass(frozen=True, slots=True)
class Profile:
    """What is removed, replaced and kept. The defaults keep what a result needs, age and sex, and nothing that names.

    An attribute that is in neither the table nor the data dictionary is removed; so are overlays and curves. A private
    one is removed unless it is on the site's safe list. What is kept as text is searched all the same, and replaced
    where it holds a value that identifies.

    Attributes:
        retain_patient_characteristics: Whether age, sex, size, weight and the like are kept (Retain Patient
            Characteristics Option). An age above 89 years becomes 90, for so few people are that old that the age alone
            tells who it is; an age that is absent is written from birth date and study date, for the birth date itself
            never leaves.
        retain_device_identity: Whether serial numbers and station names are kept (Retain Device Identity Option). Maker
            and model always are.
        shift_dates: Whether dates are shifted by a number of days that is the patient's own, times kept (Retain
            Longitudinal Temporal Information with Modified Dates Option). If not, they are emptied, or replaced
            where they may not be empty.
        keep: Attributes to keep though the table has them go: keywords, or tags like ``(0008,1030)``.
        remove: Attributes to remove though they would stay.
        replace: What to write in place of attributes, in ASCII.
        safe_private: Private attributes to keep: for each private creator, tags like ``(0019,xx23)``.
    """

    retain_patient_characteristics: bool = True
    retain_device_identity: bool = False
    shift_dates: bool = True
    keep: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    replace: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    safe_private: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    _known: dict[int, Action] = field(init=False, repr=False, compare=False, default_factory=dict)
    _site: dict[int, Action] = field(init=False, repr=False, compare=False, default_factory=dict)
    _values: dict[int, str] = field(init=False, repr=False, compare=False, default_factory=dict)
    _private: frozenset[tuple[str, int, int]] = field(init=False, repr=False, compare=False, default=frozenset())

    def __post_init__(self) -> None:
        for action, names in ((Action.KEEP, self.keep), (Action.REMOVE, self.remove), (Action.REPLACE, self.replace)):
            for name in names:
                tag = _allowed(action, name)
                if tag in self._site:
                    raise ProfileError(f"{name}: named twice, among keep, remove and replace")
                is_sequence = action is Action.KEEP and vr_of(tag) == "SQ"
                self._site[tag] = Action.WITHIN if is_sequence else action
        for name, value in self.replace.items():
            tag = _tag("replace", name)
            self._values[tag] = _valid(name, tag, value)
        private = {
            (creator.strip(), *_private_tag(creator, name))
            for creator, names in self.safe_private.items()
            for name in names
        }
        object.__setattr__(self, "_private", frozenset(private))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Profile:
        """Makes a profile of plain JSON values, a DAG's parameters for one.

        Args:
            values: Attribute names of this class with booleans, lists of strings, or mappings of strings; what is
                absent keeps its default.

        Returns:
            The profile.

        Raises:
            ProfileError: If a name is unknown, a value is of the wrong type, or an attribute cannot be treated so.
        """
        known = {each.name: each for each in fields(cls) if each.init}
        if strange := sorted(str(name) for name in values if name not in known):
            raise ProfileError(f"unknown setting {', '.join(strange)}; there are {', '.join(known)}")
        return cls(**{name: _typed(name, value) for name, value in values.items()})

    def action(self, tag: int) -> Action:
        """Tells what is done to a public attribute, at whatever depth.

        Args:
            tag: Of the attribute.

        Returns:
            The action.
        """
        known = self._known.get(tag)
        if known is None:
            known = self._known[tag] = self._site.get(tag) or self._option(tag) or self.strict_action(tag)
        return known

    def strict_action(self, tag: int) -> Action:
        """Tells what the table has for an attribute, without options and the site's choices.

        It is also what is done to a date that cannot be shifted.

        Args:
            tag: Of the attribute.

        Returns:
            The action.
        """
        vr = vr_of(tag)
        if not tag & 0xFFFF or _is_repeating(tag):
            return Action.REMOVE
        listed = _table().get(tag)
        if listed:
            for_attribute, for_sequence = _CATEGORIES[listed]
            action = for_sequence if vr == "SQ" else for_attribute
            return Action.UID if action is Action.DUMMY and vr == "UI" else action
        if not vr:
            return Action.REMOVE
        return {"PN": Action.EMPTY, "SQ": Action.WITHIN, "UI": Action.UID, "DA": Action.DUMMY, "DT": Action.DUMMY}.get(
            vr, Action.KEEP
        )

    def replacement(self, tag: int) -> str:
        """Gives what the site wants written in place of an attribute; empty where it wants nothing there."""
        return self._values.get(tag, "")

    def is_safe(self, creator: str, tag: int) -> bool:
        """Tells whether a private attribute is on the safe list.

        Args:
            creator: The private creator of its block.
            tag: Of the attribute.

        Returns:
            Whether it is kept.
        """
        return (creator, tag >> 16, tag & 0xFF) in self._private

    def has_safe(self, creator: str, group: int) -> bool:
        """Tells whether anything of a private creator is on the safe list, so that its block stays reserved."""
        return any(each[:2] == (creator, group) for each in self._private)

    @property
    def method(self) -> tuple[str, ...]:
        """De-identification Method, as recorded in each object: 64 characters a value."""
        lines = [f"DICOM PS3.15 {EDITION} Basic Profile, keyed replacement"]
        if self._site or self._private:
            more = ", keeps more than the table" if self._is_loosened else ""
            lines.append(f"site profile {self._fingerprint()}{more}")
        return tuple(lines)

    @property
    def codes(self) -> tuple[tuple[str, str], ...]:
        """De-identification Method Code Sequence, as recorded in each object: values and meanings of CID 7050.

        A profile that keeps what the table has go does not claim to be the Basic Profile.
        """
        claims = (
            ("113100", "Basic Application Confidentiality Profile", not self._is_loosened),
            ("113107", "Retain Longitudinal Temporal Information Modified Dates Option", self.shift_dates),
            ("113108", "Retain Patient Characteristics Option", self.retain_patient_characteristics),
            ("113109", "Retain Device Identity Option", self.retain_device_identity),
            ("113111", "Retain Safe Private Option", bool(self._private)),
        )
        return tuple((value, meaning) for value, meaning, holds in claims if holds)

    @property
    def _is_loosened(self) -> bool:
        return any(action in (Action.KEEP, Action.WITHIN) and tag in _table() for tag, action in self._site.items())

    def _option(self, tag: int) -> Action | None:
        vr = vr_of(tag)
        if self.shift_dates and vr in _TEMPORAL and tag not in _NEVER_SHIFTED and not _is_repeating(tag):
            return Action.KEEP if vr == "TM" else Action.SHIFT
        retained = (self.retain_patient_characteristics and tag in _tags(_PATIENT_CHARACTERISTICS)) or (
            self.retain_device_identity and tag in _tags(_DEVICE_IDENTITY)
        )
        if not retained:
            return None
        return Action.WITHIN if vr == "SQ" else Action.KEEP

    def _fingerprint(self) -> str:
        content = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=dict).encode()).hexdigest()[:12]


@lru_cache(maxsize=16 * 1024)
def vr_of(tag: int) -> str:
    """Gives the VR that the data dictionary has for a tag, the first where there are several; empty where unknown."""
    try:
        return get_entry(tag)[0].partition(" ")[0]
    except KeyError:
        return ""


@lru_cache
def _table() -> Mapping[int, str]:
    """The category of each attribute of Table E.1-1."""
    from dicomanonymizer.dicom_anonymization_databases import (  # type: ignore[import-untyped]
        dicomfields_2026c as table,
    )

    return MappingProxyType(
        {
            group << 16 | element: category
            for category in _CATEGORIES
            for group, element, *mask in getattr(table, category)
            if not mask
        }
    )


def _is_repeating(tag: int) -> bool:
    """Whether it is of a curve (50xx) or an overlay (60xx): nothing without the data that the table removes."""
    return (tag >> 24) in (0x50, 0x60) and not tag >> 16 & 1


@lru_cache
def _tags(keywords: Sequence[str]) -> frozenset[int]:
    return frozenset(tag for keyword in keywords if (tag := tag_for_keyword(keyword)))


def _allowed(action: Action, name: str) -> int:
    setting = {Action.KEEP: "keep", Action.REMOVE: "remove", Action.REPLACE: "replace"}[action]
    tag = _tag(setting, name)
    if tag >> 16 & 1:
        raise ProfileError(f"{setting}: {name} is private; name it in safe_private, with its private creator")
    if action is Action.KEEP:
        if tag in _IDENTIFIES_BY_ITSELF or vr_of(tag) == "PN" or _table().get(tag) == "U_TAGS" or _is_repeating(tag):
            raise ProfileError(f"keep: {name} identifies a person or an object, and never leaves as it is")
        return tag
    if tag in _NEEDED or tag in _WRITTEN_BY_US or tag >> 16 in _PIXEL_GROUPS or _table().get(tag) == "U_TAGS":
        raise ProfileError(f"{setting}: {name} is needed, or written by the de-identification itself")
    return tag


def _tag(setting: str, name: str) -> int:
    match = _TAG.fullmatch(name)
    tag = int(match[1] + match[2], 16) if match else tag_for_keyword(name) or 0
    if tag >> 16 < 8 or (not tag >> 16 & 1 and not vr_of(tag)):
        raise ProfileError(f"{setting}: {name!r} is no attribute; give a keyword like StudyDescription, or (0008,1030)")
    return tag


def _private_tag(creator: str, name: str) -> tuple[int, int]:
    match = _PRIVATE_TAG.fullmatch(name)
    if not match or not creator.strip():
        raise ProfileError(
            f"safe_private: {name!r} of {creator!r} is no private attribute; give the private creator with tags like "
            "(0019,xx23)"
        )
    return int(match[1], 16), int(match[2], 16)


def _valid(name: str, tag: int, value: str) -> str:
    vr = vr_of(tag)
    if vr not in _TEXTUAL:
        raise ProfileError(f"replace: {name} (VR {vr}) holds no text; remove it instead")
    if not (value.isascii() and value.isprintable()) or "\\" in value:
        raise ProfileError(f"replace: the value of {name} is to be one line of ASCII, without a backslash")
    try:
        validate_value(vr, value, config.RAISE)
    except ValueError:
        raise ProfileError(f"replace: the value of {name} is none that its VR {vr} allows") from None
    return value


def _typed(name: str, value: Any) -> Any:
    if name in ("keep", "remove"):
        return _strings(name, value)
    if name == "replace":
        if not isinstance(value, Mapping) or not all(isinstance(part, str) for pair in value.items() for part in pair):
            raise ProfileError("replace: a mapping of attributes to texts")
        return MappingProxyType(dict(value))
    if name == "safe_private":
        if not isinstance(value, Mapping):
            raise ProfileError("safe_private: a mapping of private creators to lists of tags")
        return MappingProxyType({str(creator): _strings(name, tags) for creator, tags in value.items()})
    if not isinstance(value, bool):
        raise ProfileError(f"{name}: true or false, not {value!r}")
    return value


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable) or not all(isinstance(part, str) for part in value):
        raise ProfileError(f"{name}: a list of strings")
    return tuple(value)
