"""From scores to what to label: exact kernels, strategies over them, and how files are read for it."""
