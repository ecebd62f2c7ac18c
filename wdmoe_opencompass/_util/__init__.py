"""Plumbing that knows nothing of wireless or of models: files, names, numbers in texts."""
