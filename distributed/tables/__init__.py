"""Tables as files: pools, labelled rows and scores, frozen, read with checksums, and written by the contract."""
