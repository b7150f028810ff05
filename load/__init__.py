"""Load for a server from outside, and what that costs it: it knows of HTTP and of processes, and of no server's inside.

Runs in:  a process of its own, beside the server.
"""
