"""From a deadline to the archive: the sweep wakes what is due, the archivist moves event records to Postgres.

Promised: every step may run twice and on several workers at once; a crash between two steps repeats one and loses none. A record
is rejected only with evidence that its data is bad, and is kept whole for a replay. The consistency check repairs and counts
changes that were made in Redis from outside. Refused: deciding; the ledger and the domain do that.
"""
