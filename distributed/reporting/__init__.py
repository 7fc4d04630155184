"""Reports and exports: a selection as a page to read, and as files for labelling tools."""
