"""A run: its record, its lease, and what its processes tell each other."""
