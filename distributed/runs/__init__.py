"""What a run is: its record, its lease, and what its processes tell each other."""
