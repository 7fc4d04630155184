"""Checks of this machine, the cluster and a store before a run; each says what to do where it fails."""
