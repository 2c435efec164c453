"""What is "found", by product: deterministic by UID, or as planned.

No key, score or threshold of the real service is published: every one here is made up from the products' clinical
scope.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from qure_provider.emulator.header import QCT, QER, QMSK, QXR

SIMULATED = "SIMULATED, NOT FOR CLINICAL USE"

CATALOGUE: dict[str, dict[str, str]] = {
    QXR: {
        "pneumothorax": "Pneumothorax suspected.",
        "pleural_effusion": "Blunting of the costophrenic angle suggests pleural effusion.",
        "consolidation": "Consolidation suspected.",
        "nodule": "Nodular opacity suspected.",
        "cardiomegaly": "Cardiothoracic ratio appears increased.",
        "tuberculosis": "Findings suggestive of tuberculosis.",
    },
    QMSK: {
        "fracture": "Fracture suspected.",
        "dislocation": "Dislocation suspected.",
        "joint_effusion": "Joint effusion suspected.",
    },
    QER: {
        "intracranial_hemorrhage": "Intracranial hemorrhage suspected.",
        "subdural_hemorrhage": "Subdural hemorrhage suspected.",
        "subarachnoid_hemorrhage": "Subarachnoid hemorrhage suspected.",
        "midline_shift": "Midline shift suspected.",
        "mass_effect": "Mass effect suspected.",
        "cranial_fracture": "Cranial fracture suspected.",
    },
    QCT: {
        "lung_nodule": "Lung nodule suspected.",
        "emphysema": "Emphysema suspected.",
    },
}
"""Product to finding key to sentence."""

THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Findings:
    """What is found in one resource.

    Attributes:
        usecase: Product.
        present: Keys, in the catalogue's order where they are in it.
        scored: Every key of the product and every planned one, with a score of 0..1; those present are above the
            threshold.
    """

    usecase: str
    present: tuple[str, ...]
    scored: tuple[tuple[str, float], ...]

    @property
    def scores(self) -> dict[str, float]:
        """Key to score."""
        return dict(self.scored)

    @property
    def decisions(self) -> dict[str, bool]:
        """Each score against the threshold."""
        return {key: score >= THRESHOLD for key, score in self.scored}

    @property
    def sentences(self) -> tuple[tuple[str, str], ...]:
        """Key and sentence of each finding that is present, each marked as simulated."""
        catalogue = CATALOGUE.get(self.usecase, {})
        return tuple((key, f"SIMULATED: {catalogue.get(key, f'{key} suspected.')}") for key in self.present)

    @property
    def impression(self) -> str:
        """The conclusion, marked."""
        return f"{SIMULATED}. {'Abnormal study' if self.present else 'No abnormality detected'}"


def _fraction(*of: str) -> float:
    return int.from_bytes(hashlib.sha256("\0".join(of).encode()).digest()[:6], "big") / 2**48


def find(usecase: str, uid: str, *, seed: str, abnormal_share: float, planned: tuple[str, ...] | None) -> Findings:
    """Say what is found in a resource; always the same for the same arguments.

    Args:
        usecase: Product.
        uid: The resource's UID.
        seed: Varies the draw.
        abnormal_share: Share of resources with findings.
        planned: Exactly these instead of a draw.

    Returns:
        What is found.
    """
    keys = tuple(CATALOGUE.get(usecase, {}))
    if planned is not None:
        present = planned
    elif keys and _fraction(seed, uid) < abnormal_share:
        first = keys[int(_fraction(seed, uid, "first") * len(keys))]
        present = tuple(key for key in keys if key == first or _fraction(seed, uid, key) < 0.15)
    else:
        present = ()
    scored = []
    for key in dict.fromkeys((*keys, *present)):
        within = _fraction(seed, uid, key, "score") * (1 - THRESHOLD)
        scored.append((key, round(within + THRESHOLD if key in present else within * 0.98, 4)))
    return Findings(usecase, present, tuple(scored))
