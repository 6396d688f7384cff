"""Reads that need both servers: one view of sessions over Redis (open, recently closed) and Postgres (closed).

It promises that a session is found at every instant of its life, in one shape. It writes nothing, and refuses to know keys and
scopes: the API checks those.
"""
