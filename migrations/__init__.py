"""The schema's history, applied by `app.archive.engine`. A migration that has been released is never changed."""
