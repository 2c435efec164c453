"""Which results go where: one ordered list of data."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from qure_provider.api.files import FILE_KINDS
from qure_provider.api.model import Meaning, Outcome

NEVER_ONWARD = frozenset({"original", "original_thumbnail"})
"""The service's copy of the image is lossy and carries the source's UID: it could overwrite the image."""

SENDABLE = tuple(kind for kind in FILE_KINDS if kind not in NEVER_ONWARD)
"""What ``send`` takes."""
WORDS = {
    "product": ("qxr", "qmsk", "qer", "qct"),
    "meaning": tuple(meaning.value for meaning in Meaning),
    "modality": ("cr", "dx", "ct"),
    "outcome": tuple(outcome.value for outcome in Outcome),
}
"""What the conditions of a rule take; stations and findings can be any."""
_PRODUCT = re.compile(rf"({'|'.join(WORDS['product'])})([-_ ].+)?", re.IGNORECASE)


class RulesError(ValueError):
    """The rules are not of the form that ``rules_from`` describes."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a rule looks at.

    Attributes:
        product: As the service named it.
        meaning: The triage word's meaning.
        modalities: The source images' modalities.
        stations: The source images' station names.
        findings: The keys of listed findings and of decisions that are true.
        outcomes: Of its images: ``ready``, and of those that a report lacks.
    """

    product: str
    meaning: Meaning
    modalities: frozenset[str]
    stations: frozenset[str]
    findings: frozenset[str]
    outcomes: frozenset[str] = frozenset({Outcome.READY.value})


@dataclass(frozen=True, slots=True)
class When:
    """The conditions of a rule: each a list of which one must apply, in upper or lower case; an empty one always does.

    Attributes:
        product: Products: ``qxr``, ``qmsk``, ``qer``, ``qct``, or a longer name that begins so (``qct-lung``).
        meaning: Triage meanings, such as ``urgent``.
        modality: Modalities, such as ``CT``.
        station: Station names.
        finding: Finding or decision keys.
        outcome: Outcomes of its images. What goes onward always has one that is ``ready``; a report has others where
            images of the study lack a result: ``{"outcome": ["timed out", "invalid"]}``.
    """

    product: tuple[str, ...] = ()
    meaning: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    station: tuple[str, ...] = ()
    finding: tuple[str, ...] = ()
    outcome: tuple[str, ...] = ()

    def applies(self, case: Case) -> bool:
        """Return whether every condition does."""
        return (
            _fits(self.product, {case.product})
            and _fits(self.meaning, {case.meaning.value})
            and _fits(self.modality, case.modalities)
            and _fits(self.station, case.stations)
            and _fits(self.finding, case.findings)
            and _fits(self.outcome, case.outcomes)
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """When it applies, what is sent to whom.

    Attributes:
        when: The conditions.
        send: File kinds, such as ``("sc", "report_sr")``; None for all that the destination takes; empty for nothing.
        to: Destinations: connection ids, or folders' URLs.
    """

    when: When
    send: tuple[str, ...] | None
    to: tuple[str, ...]


def rules_from(deliver_to: Sequence[str] | str, rules: Sequence[Mapping[str, Any]]) -> tuple[Rule, ...]:
    """Read the rules.

    ``[{"when": {"product": ["qxr"], "meaning": ["urgent", "abnormal"]}, "send": ["sc"], "to": ["pacs"]}, ...]``:
    for each destination the first rule that applies decides. ``send`` left out means all that the destination takes;
    an empty list means nothing.

    Args:
        deliver_to: Destinations that get everything, a list or separated by blanks; they stand behind the rules.
        rules: The ordered list.

    Raises:
        RulesError: If a key or a value is not understood. Stations, findings and destinations can be any.
    """
    parsed = [_rule(number, rule) for number, rule in enumerate(rules, 1)]
    everything = deliver_to.replace(",", " ").split() if isinstance(deliver_to, str) else deliver_to
    if everything:
        parsed.append(Rule(When(), None, _texts("deliver_to", everything)))
    return tuple(parsed)


def destinations_of(rules: Sequence[Rule]) -> tuple[str, ...]:
    """Return every destination that the rules name, each once, in order."""
    return tuple(dict.fromkeys(destination for rule in rules for destination in rule.to))


def decide(rules: Sequence[Rule], case: Case, destination: str) -> tuple[str, ...] | None:
    """Return what is sent to a destination.

    Returns:
        File kinds, empty for all that it takes; None where nothing is wanted there.
    """
    for rule in rules:
        if destination in rule.to and rule.when.applies(case):
            if rule.send is None:
                return ()
            return rule.send or None
    return None


def _fits(wanted: Sequence[str], found: Collection[str]) -> bool:
    return not wanted or not {text.casefold() for text in found}.isdisjoint(text.casefold() for text in wanted)


def _rule(number: int, value: Mapping[str, Any]) -> Rule:
    if not isinstance(value, Mapping):
        raise RulesError(f"Rule {number} must be an object with 'when', 'send' and 'to'.")
    _check(f"Rule {number}", value, ["when", "send", "to"])
    when = value.get("when", {})
    known = {item.name for item in fields(When)}
    if not isinstance(when, Mapping):
        raise RulesError(f"Rule {number}: 'when' must be an object; it takes {', '.join(sorted(known))}.")
    _check(f"Rule {number}: 'when'", when, sorted(known))
    conditions = {key: _texts(f"Rule {number}, {key}", texts) for key, texts in when.items()}
    for key, words in WORDS.items():
        strange = [word for word in map(str.casefold, conditions.get(key, ())) if not _could_apply(key, word)]
        _check(f"Rule {number}: {key!r}", strange, words)
    to = _texts(f"Rule {number}, to", value.get("to", ()))
    if not to:
        raise RulesError(f"Rule {number} names no destination in 'to'.")
    send = None if value.get("send") is None else _texts(f"Rule {number}, send", value["send"])
    _check(f"Rule {number}: 'send'", send or (), SENDABLE)
    return Rule(When(**conditions), send, to)


def _could_apply(key: str, word: str) -> bool:
    return word in WORDS[key] or (key == "product" and _PRODUCT.fullmatch(word) is not None)


def _check(name: str, words: Iterable[Any], known: Sequence[str]) -> None:
    """Refuse a word that could never apply: a rule that is misspelt would deliver too much or nothing, in silence."""
    unknown = sorted({str(word) for word in words if str(word) not in known})
    if unknown:
        raise RulesError(f"{name} does not take {', '.join(map(repr, unknown))}. It takes {', '.join(known)}.")


def _texts(name: str, value: Any) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else None
    if items is None or not all(isinstance(item, str) and item for item in items):
        raise RulesError(f"{name} must be a text or a list of texts.")
    return items
