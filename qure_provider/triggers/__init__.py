"""The halves of the sensors that run in the triggerer."""
