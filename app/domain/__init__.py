"""The session rules, pure: records, policies, and `decide`, from a state and a command to a decision.

No clock, no chance, no I/O, and no import but the standard library and msgspec: the same input gives the same decision in live
traffic, in the sweeper, in tests and in imports of history. Refusals are the errors of `app.domain.errors`.
"""
