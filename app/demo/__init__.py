"""`adjourn demo`: starts a whole system, plays a scripted day of traffic through it, and compares the result with the script.

day (a script and its expected result) ── HTTP ──> adjourn serve ── webhooks ──> receiver
                    │                                      │                            │
                    └──────────────── compared ────────────┴────────────────────────────┘
"""
