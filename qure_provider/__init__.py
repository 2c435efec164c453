"""Apache Airflow provider for the Qure.ai Platform API."""

__version__ = "0.1.0"
