"""Is everything fit for a run: this machine, the cluster, a store? Each check says what to do if not."""
