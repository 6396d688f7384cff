"""Live sessions in Redis: the state of every conversation, its deadline, its messages, and the events not yet archived.

Promised: a decision is committed whole or not at all, by compare-and-set, in one script call (`commit.lua`); a call that was
acknowledged is in Redis, and a repeat of an entry gets its first answer. Commands of many callers share one commit. Refused: any
rule (it knows versions, deadlines and lists, never a timeout, a role or a reason), and any key that `keys.py` does not name.
"""
