"""``python -m benchmarks``: how the provider compares with what one would write oneself, and with the limit.

Everything is measured side by side in one run, in several alternating rounds; what counts are the ratios. Services are
stand-ins on the loopback interface, and all data is made up: SIMULATED.
"""
