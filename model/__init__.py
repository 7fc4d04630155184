"""Pure PyTorch and NumPy on one device: estimators, loss heads, objectives, image geometry, metrics, bundles."""
