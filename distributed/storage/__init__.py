"""Storage: local paths and s3:// URIs behind one set of operations."""
