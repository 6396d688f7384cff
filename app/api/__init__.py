"""The HTTP API: routes, keys and their scopes, query parameters, problem details, and the OpenAPI document.

It promises one shape for each thing whether a session is open or closed, problem details (RFC 9457) for every refusal, and 404
alike for a thing that does not exist and a thing that the key does not cover. It decides no session rule: a route reads, asks
the ledger to commit a command, or changes configuration in one transaction. `ingest` answers the two busiest routes in front of
FastAPI; every other resource is one module of `routes`, with its models.
"""
