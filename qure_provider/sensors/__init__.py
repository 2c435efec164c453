"""What the tasks wait for."""
