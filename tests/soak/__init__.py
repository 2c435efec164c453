"""Nights back to back in a real Airflow, to see whether anything grows that must not."""
