"""Training of a model bundle on labelled rows: the loop of one process, and its spreading with Ray."""
