"""The ledger's tables. Times are seconds since the epoch; a missing time means that it has not happened."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_UID = String(64)
# What headers, the service and people say is Text: PostgreSQL refuses what is longer than it should be.

runs = Table(
    "runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("dag_id", String(250), nullable=False),
    Column("run_id", String(250), nullable=False),
    Column("group_id", String(250), nullable=False),
    Column("clear_number", Integer, nullable=False),
    Column("night", Text, nullable=False),
    Column("conn_id", String(250), nullable=False),
    Column("planner", String(64), nullable=False, default=""),
    Column("folder", String(300), nullable=False),
    Column("began_at", Float, nullable=False),
    Column("deadline", Float, nullable=False),
    Column("planned_at", Float),
    Column("finished_at", Float),
    Column("completeness", Text, nullable=False),
    Column("counts", JSON, nullable=False),
    UniqueConstraint("dag_id", "run_id", "group_id"),
)

studies = Table(
    "studies",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_instance_uid", _UID, nullable=False),
    Column("patient_id", Text, nullable=False),
    Column("issuer_of_patient_id", Text, nullable=False),
    Column("accession_number", Text, nullable=False),
    Column("birth_date", Text, nullable=False),
    Column("sex", Text, nullable=False),
    Column("patient_name", Text, nullable=False),
    Column("identity_key", String(64), nullable=False, unique=True),
    Column("study_date", Text, nullable=False),
    Column("first_seen_at", Float, nullable=False),
    Index(None, "study_instance_uid"),
)
"""A study as it was identified when it was sent; a study whose identity changed has two rows."""

resources = Table(
    "resources",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uid", _UID, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("route", String(8), nullable=False),
    Column("study_id", ForeignKey("studies.id"), nullable=False),
    Column("series_instance_uid", _UID, nullable=False),
    Column("conn_id", String(250), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("modality", Text, nullable=False),
    Column("body_part", Text, nullable=False),
    Column("station_name", Text, nullable=False),
    Column("acquired", Text, nullable=False),
    Column("instances", Integer, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("outcome", String(16)),
    Column("reason", Text, nullable=False, default=""),
    Column("triage", Text),
    Column("meaning", String(32)),
    Column("usecase", Text),
    Column("file_counts", JSON),
    Column("store_path", Text),
    Column("doubt", Text, nullable=False, default=""),
    Column("planned_at", Float, nullable=False),
    Column("uploaded_at", Float),
    Column("computed_at", Float),
    Column("computing_run_id", Integer),
    Column("computing_until", Float),
    Column("ready_at", Float),
    Column("settled_at", Float),
    Column("updated_at", Float, nullable=False),
    Column("sent_uid", _UID),
    Column("digest", String(64)),
    Column("baseline", String(64)),
    Column("sent_in_parts", Boolean, nullable=False, default=False),
    Column("only_shown", Boolean, nullable=False, default=False, server_default=false()),
    UniqueConstraint("uid", "revision"),
    Index(None, "study_id"),
    Index(None, "sent_uid"),
    Index(None, "outcome"),
    sqlite_autoincrement=True,
)
"""An X-ray image or a CT series as it was sent; one that gained images since is a new revision. No key is given twice,
so that what was once delivered is never taken for the result of another image. ``sent_uid`` is what the service knows
it by where it was de-identified; ``digest`` is of what the service last said when ready, ``baseline`` of what it said
before it was asked to compute anew (empty where it had nothing); ``sent_in_parts``: over several tries;
``only_shown``: planned by dry runs of the upload alone, so that nothing else may take it for a revision."""

identity_maps = Table(
    "identity_maps",
    metadata,
    Column("resource_id", ForeignKey("resources.id", ondelete="CASCADE"), primary_key=True),
    Column("key_id", String(16), nullable=False),
    Column("sent_study_uid", _UID, nullable=False),
    Column("sent_patient_id", String(16), nullable=False),
    Column("patient", Text, nullable=False),
    Column("pseudonym", JSON, nullable=False),
    Column("uids", JSON, nullable=False),
    Column("dates", JSON, nullable=False),
    Index(None, "sent_study_uid"),
    Index(None, "sent_patient_id"),
)
"""What was sent in place of whose a resource is, and the way back; only of what was de-identified."""

acknowledged = Table(
    "acknowledged",
    metadata,
    Column("resource_id", ForeignKey("resources.id", ondelete="CASCADE"), primary_key=True),
    Column("sop_instance_uid", _UID, primary_key=True),
)
"""Which instances of a resource the service said that it holds."""

batches = Table(
    "batches",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("route", String(8), nullable=False),
    Column("manifest", Text, nullable=False),
    Column("owner", String(64), nullable=False, default=""),
    Index(None, "run_id"),
    sqlite_autoincrement=True,
)
"""What one mapped task works on. No key is given twice, so that a task of an old plan finds nothing of a new one."""

planned = Table(
    "planned",
    metadata,
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("resource_id", ForeignKey("resources.id"), primary_key=True),
    Column("batch_id", ForeignKey("batches.id", ondelete="CASCADE")),
    Column("why", String(16), nullable=False),
    Index(None, "batch_id"),
    Index(None, "resource_id"),
)
"""Which resources a run answers for; without a batch where an earlier run had already finished it."""

alerts = Table(
    "alerts",
    metadata,
    Column("resource_id", ForeignKey("resources.id", ondelete="CASCADE"), primary_key=True),
    Column("channel", Text, primary_key=True),
    Column("tries", Integer, nullable=False),
    Column("sent_at", Float),
    Column("last_error", String(250), nullable=False),
    Column("claimed_until", Float),
)
"""Who was told of an urgent result, and when; ``claimed_until``: until then somebody is trying to."""

parcels = Table(
    "parcels",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("subject", _UID, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("study_instance_uid", _UID, nullable=False),
    Column("product", Text, nullable=False),
    Column("resource_ids", JSON, nullable=False),
    Column("urgent", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("kind", "subject", "revision"),
)
"""What is sent as one: a resource's DICOM objects, or a study's report by one product; each change is a revision."""

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("parcel_id", ForeignKey("parcels.id", ondelete="CASCADE"), nullable=False),
    Column("destination", String(250), nullable=False),
    Column("run_id", ForeignKey("runs.id", ondelete="SET NULL")),
    Column("sends", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("due_at", Float, nullable=False),
    Column("lease_owner", String(64), nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("receipt", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("sending_at", Float),
    Column("delivered_at", Float),
    Column("may_have_arrived", Boolean, nullable=False, default=False, server_default=false()),
    UniqueConstraint("parcel_id", "destination"),
    Index(None, "state", "due_at"),
    Index(None, "run_id"),
)
"""One parcel on its way to one destination; ``may_have_arrived``: by a try that was in doubt, whatever followed it."""

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("study_instance_uid", _UID, nullable=False),
    Column("subject", String(250), nullable=False),
    Column("detail", JSON, nullable=False),
    Index(None, "study_instance_uid"),
    Index(None, "at"),
)
"""What happened, append only."""
