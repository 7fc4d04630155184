"""From labelled rows to a model bundle: the loop of one process, and what spreads it."""
