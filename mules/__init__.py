"""Replicas: one process, one model, loaded after the fork.  ML frameworks are imported in engines/ alone."""
