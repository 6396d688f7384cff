"""`adjourn demo`: everything started, a day of traffic played through it, and what came of it compared with what was scripted.

day (a script, with what must come of it) ── HTTP ──> adjourn serve ── webhooks ──> receiver
                    │                                      │                            │
                    └──────────────── compared ────────────┴────────────────────────────┘
"""
