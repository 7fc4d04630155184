"""Where bytes lie: local paths and s3:// URIs behind one set of operations, and whether a store is fit for them."""
