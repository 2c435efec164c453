"""Fuzzing of what reads other people's bytes: exports, the service's answers, receivers' answers."""
