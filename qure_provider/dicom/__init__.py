"""Reading an export: scan, group, select, quarantine, pack.

Pure: it reads the files that it is handed and returns frozen dataclasses; no network and no Airflow.
"""
