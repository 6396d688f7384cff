"""`decide` and the rules that it names, one module a family.

Rules read and change a `Transition`; only `decide` makes a `Decision` of it. A rule that opens, closes or announces something
names its row of docs/rules.md, and `app.domain.session_view` has words for each row.
"""
