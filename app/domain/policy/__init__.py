"""A bot's session policy: its fields with their limits, presets, what it does in words, and how it is read.

`model` owns the fields, `texts` the words for users, `presets` the four systems' values, `describe` the words and timeline for
the policy's owner, `parse` the way from JSON to a `Policy`. A policy that exists is valid: `policy_from` refuses any other with
all of its faults.
"""
