"""Breaks things on purpose, and counts afterwards whether anything was lost, doubled or sent to the wrong patient."""
