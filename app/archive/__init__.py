"""Postgres: closed sessions and their messages, the tables of the configuration, the outbox, rejects and the audit log.

Promised: a closed session is written once, whatever is repeated, since its id is the primary key; instants are `timestamptz`;
lists page by keyset; one statement works on many rows. A function takes the caller's connection, so the caller decides what is
one transaction. Refused: any session rule, any HTTP, and Redis; a schema change outside of `migrations`.
"""
