"""What became of every resource: one database that every step takes its work from and writes its progress to."""
