"""Gives the tests an Airflow of their own, before anything imports it; each test process has another."""

import atexit
import os
import shutil
import tempfile

from hypothesis import HealthCheck, settings

HOME = tempfile.mkdtemp(prefix="qure-tests-airflow-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

for name in [name for name in os.environ if name.startswith(("AIRFLOW_CONN_", "AIRFLOW__QURE__"))]:
    del os.environ[name]
os.environ |= {
    "AIRFLOW_HOME": HOME,
    "AIRFLOW__CORE__DAGS_FOLDER": f"{HOME}/dags",
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
}

# A busy machine is no reason to fail: what is tested is what comes out, not when.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")
