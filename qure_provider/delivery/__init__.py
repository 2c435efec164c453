"""Taking results onward: what goes where, what it must pass first, and how its arrival is known."""
