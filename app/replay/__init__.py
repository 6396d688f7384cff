"""`adjourn replay`: posts a file of entries through the API, in its order, one batch at a time.

    file ── lines ──> paced batches ── poster ──> tally

Owns reading, pacing, retrying and counting. It judges no entry: refusals of the API are counted and reported with their lines.
"""
