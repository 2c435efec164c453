"""What was sent in place of whose a study is, and the way back: the half of the ledger that de-identification needs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, and_, insert, or_, select, update

from qure_provider.dicom.model import Identity
from qure_provider.dicom.pseudonym import IdentityMap, Patient, PseudonymCollisionError
from qure_provider.ledger.schema import acknowledged, identity_maps, resources, studies


@dataclass(frozen=True, slots=True)
class Sending:
    """A resource that is about to be sent de-identified.

    Attributes:
        resource_id: Which.
        sent_uid: What the service will know it by.
        identity_map: The way back from what is sent of it.
    """

    resource_id: int
    sent_uid: str
    identity_map: IdentityMap


class Pseudonyms:
    """What stands for whom. It holds no key: what was sent with an old one leads back as long as it is kept.

    Every method is one transaction.

    Args:
        engine: From ``open_engine``.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, resource_ids: Iterable[int], key_id: str) -> None:
        """Forget what the service acknowledged of resources under another identity than the one they get now.

        A series must not lie at the service half under one identity and half under another: after the key or the
        policy changed, what was begun is sent anew as a whole.

        Args:
            resource_ids: Resources whose images are about to be sent.
            key_id: Of the key for their pseudonyms; empty where they are sent as they are.
        """
        query = select(identity_maps.c.key_id).where(identity_maps.c.resource_id == resources.c.id).scalar_subquery()
        with self._engine.begin() as connection:
            for resource_id in resource_ids:
                recorded = connection.scalar(select(query).where(resources.c.id == resource_id)) or ""
                if recorded == key_id:
                    continue
                connection.execute(acknowledged.delete().where(acknowledged.c.resource_id == resource_id))
                connection.execute(identity_maps.delete().where(identity_maps.c.resource_id == resource_id))
                connection.execute(
                    update(resources)
                    .where(resources.c.id == resource_id)
                    .values(sent_uid=None, uploaded_at=None, computed_at=None)
                )

    def record(self, sendings: Iterable[Sending]) -> dict[int, PseudonymCollisionError]:
        """Record the way back before anything is sent.

        What an earlier try recorded of a resource is added to: its files may have been sent since.

        Args:
            sendings: What is about to be sent.

        Returns:
            Resources that must not be sent, for their pseudonym stands for somebody else already.
        """
        refused: dict[int, PseudonymCollisionError] = {}
        with self._engine.begin() as connection:
            for sending in sendings:
                try:
                    self._record(connection, sending)
                except PseudonymCollisionError as error:
                    refused[sending.resource_id] = error
        return refused

    def way_back(self, resource_id: int) -> IdentityMap | None:
        """Return the way back from what was sent of a resource's study; None where it was sent as it is.

        Objects of a result may refer to other images of the study, so it covers all of them that were sent under the
        same pseudonyms.
        """
        query = select(identity_maps, studies).join(resources, resources.c.id == identity_maps.c.resource_id)
        query = query.join(studies, studies.c.id == resources.c.study_id).order_by(identity_maps.c.resource_id)
        with self._engine.begin() as connection:
            own = connection.execute(query.where(resources.c.id == resource_id)).mappings().one_or_none()
            if own is None:
                return None
            others = connection.execute(
                query.where(identity_maps.c.sent_study_uid == own["sent_study_uid"], resources.c.id != resource_id)
            ).mappings()
            same = [_identity_map(row) for row in others if row["pseudonym"] == own["pseudonym"]]
        return _identity_map(own).joined(same)

    def _record(self, connection: Connection, sending: Sending) -> None:
        new, resource_id = sending.identity_map, sending.resource_id
        patient = _patient(new.source)
        _ensure_distinct(connection, sending, patient)
        known = connection.execute(
            select(identity_maps.c.uids, identity_maps.c.dates).where(identity_maps.c.resource_id == resource_id)
        ).one_or_none()
        uids, dates = (dict(known.uids), dict(known.dates)) if known else ({}, {})
        values = {
            "key_id": new.key_id,
            "sent_study_uid": new.pseudonym.study_instance_uid,
            "sent_patient_id": new.pseudonym.patient_id,
            "patient": patient,
            "pseudonym": asdict(new.pseudonym),
            "uids": {**uids, **new.uids},
            "dates": {**dates, **new.dates},
        }
        if known:
            statement: Any = update(identity_maps).where(identity_maps.c.resource_id == resource_id).values(values)
        else:
            statement = insert(identity_maps).values(resource_id=resource_id, **values)
        connection.execute(statement)
        connection.execute(update(resources).where(resources.c.id == resource_id).values(sent_uid=sending.sent_uid))


def _ensure_distinct(connection: Connection, sending: Sending, patient: str) -> None:
    """Raise where a pseudonym of a study, patient or resource already stands for another one."""
    new = sending.identity_map
    other_study = and_(
        identity_maps.c.sent_study_uid == new.pseudonym.study_instance_uid,
        studies.c.study_instance_uid != new.source.study_instance_uid,
    )
    other_patient = and_(
        identity_maps.c.sent_patient_id == new.pseudonym.patient_id, identity_maps.c.patient != patient
    )
    is_taken = connection.scalar(
        select(identity_maps.c.resource_id)
        .join(resources, resources.c.id == identity_maps.c.resource_id)
        .join(studies, studies.c.id == resources.c.study_id)
        .where(or_(other_study, other_patient))
        .limit(1)
    )
    this = connection.scalar(select(resources.c.uid).where(resources.c.id == sending.resource_id))
    other_resource = select(resources.c.id).where(resources.c.sent_uid == sending.sent_uid, resources.c.uid != this)
    if is_taken is not None or connection.scalar(other_resource.limit(1)) is not None:
        raise PseudonymCollisionError(
            "Two sources have the same pseudonym, so nothing was sent. Change the key for pseudonyms, and keep the old "
            "one until its studies are done."
        )


def _patient(identity: Identity) -> str:
    patient = Patient.of(identity)
    return json.dumps([patient.patient_id, patient.issuer, patient.study_instance_uid])


def _identity_map(row: RowMapping | Mapping[str, Any]) -> IdentityMap:
    return IdentityMap(
        source=Identity(
            study_instance_uid=row["study_instance_uid"],
            patient_id=row["patient_id"],
            issuer_of_patient_id=row["issuer_of_patient_id"],
            accession_number=row["accession_number"],
            birth_date=row["birth_date"],
            sex=row["sex"],
            patient_name=row["patient_name"],
        ),
        pseudonym=Identity(**row["pseudonym"]),
        uids=row["uids"],
        dates=row["dates"],
        key_id=row["key_id"],
    )
