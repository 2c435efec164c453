"""Who may see a night: who may see the runs of the DAG that made it. Airflow's own accounts and permissions decide."""

from __future__ import annotations

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.models.dag import DagModel


def may_see(dag_id: str, user: BaseUser) -> bool:
    """Tell whether a user may see the runs of a DAG.

    Args:
        dag_id: The DAG; it need not exist any more.
        user: The user.
    """
    return get_auth_manager().is_authorized_dag(
        method="GET",
        access_entity=DagAccessEntity.RUN,
        details=DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id)),
        user=user,
    )
