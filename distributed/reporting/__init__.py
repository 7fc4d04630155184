"""What people and labelling tools get of a selection: a report to read, and exports to label."""
