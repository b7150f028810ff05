"""The core: tasks, frames, batches and the way between workers and replicas.

Neutral of HTTP, of uWSGI (but for uwsgi_transport.py) and of any ML framework.
"""
