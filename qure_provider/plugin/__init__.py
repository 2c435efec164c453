"""Pages inside the Airflow UI: the nights that the store keeps."""
