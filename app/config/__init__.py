"""A change of configuration reaches every process: bots, policies, endpoints and API keys.

    change (Postgres, one transaction, audited) ── publish ──> hash and stream in Redis ── follow ──> a replica in each process

Postgres owns the configuration; the copy in Redis can be lost and is written again within a second. Promised: a change that was
committed reaches every process, in order, at least once, also after a crash between any two steps; requests read the replica and
never wait for Postgres. Refused: secrets. Keys are stored as digests, and endpoints without their address and secret.
"""
