"""Webhooks, from the outbox to the receiver.

Owns when a delivery is sent, signed, retried and given up, and where it may go. Promises: each delivery is sent at least once
under one id until the receiver accepts it or it is failed, where an admin sees it; no endpoint delays another; a crash at any
step delays a delivery by one lease. Refuses redirects, addresses that are not permitted, and replies without end.
"""
