"""Selection from scores: exact kernels, the strategies over them, and the reading of files for it."""
