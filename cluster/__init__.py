"""Runs ``docker-compose.yaml`` without Docker: each service as a process on this machine's loopback interface."""
