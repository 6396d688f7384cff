"""The console: pages for people who look after bots, rendered on the server, in the same process as the API.

It promises that a page shows and does what the API shows and does for the same key, because it reads and changes everything by
calls of the API's own routes within the process. It owns the sign-in, the pages and their pictures. It refuses to read Redis or
Postgres for a page, to know a scope of its own, and to load anything from another host.
"""
