"""From the bytes that a bot posts to commands for the ledger, and back to one receipt or refusal an entry.

Promised: a receipt means committed; one broken entry fails alone; an entry is judged as a whole, with every fault at once.
Refused: rules of sessions (the domain's), HTTP (the API's), and a batch that cannot be split into entries.
"""
