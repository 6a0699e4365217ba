"""The hot loops' operations: an eager reference for each, importable without a GPU."""
