"""Metrics of a bundle, of its predicted loss and of a selection, on labelled rows."""
