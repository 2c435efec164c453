"""One file for each system that the provider talks to, and what those files share.

Hooks do input and output and know no DAG.
"""
