"""A result as people and clinical systems read it. Pure: no network and no Airflow."""
