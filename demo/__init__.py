"""The demo: a night's export of real images through the whole pipeline, in a real Airflow, on one machine."""
