"""The schema's history, applied by `app.archive.migrate`. A migration that has been released is never changed."""
