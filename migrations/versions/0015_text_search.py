"""Let transcripts be searched by words: the language that a message is read in, and the functions that read it so.

The index that makes it fast is no part of the schema, since it slows the archive: docs/operations.md has its statement. Messages
that were archived before have no language here: their words are compared as they are.
"""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

# Language of a tag to the text search configuration of Postgres.
CONFIGURATIONS = {
    "ar": "arabic",
    "ca": "catalan",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "eu": "basque",
    "fi": "finnish",
    "fr": "french",
    "ga": "irish",
    "hi": "hindi",
    "hu": "hungarian",
    "hy": "armenian",
    "id": "indonesian",
    "it": "italian",
    "lt": "lithuanian",
    "nb": "norwegian",
    "ne": "nepali",
    "nl": "dutch",
    "no": "norwegian",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
    "yi": "yiddish",
}


def upgrade() -> None:
    op.execute("ALTER TABLE messages ADD COLUMN session_language text")
    cases = " ".join(f"WHEN '{tag}' THEN 'pg_catalog.{name}'::regconfig" for tag, name in CONFIGURATIONS.items())
    any_language = " || ".join(f"words_asked('{tag}', asked)" for tag in sorted(CONFIGURATIONS))
    # With RETURN their parts are found now, not when an index is made or restored, where only Postgres's own schema is searched.
    for function, body in {
        "words_configuration(tag text) RETURNS regconfig": (
            f"CASE lower(substring(tag FROM '^[A-Za-z]+')) {cases} ELSE 'pg_catalog.simple'::regconfig END"
        ),
        "words_of(tag text, said text) RETURNS tsvector": "to_tsvector(words_configuration(tag), said)",
        "words_asked(tag text, asked text) RETURNS tsquery": "websearch_to_tsquery(words_configuration(tag), asked)",
        "words_asked_anywhere(asked text) RETURNS tsquery": f"words_asked(NULL, asked) || {any_language}",
    }.items():
        op.execute(f"CREATE FUNCTION {function} LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN {body}")


def downgrade() -> None:
    for function in (
        "words_asked_anywhere(text)",
        "words_asked(text, text)",
        "words_of(text, text)",
        "words_configuration(text)",
    ):
        op.execute(f"DROP FUNCTION {function}")
    op.execute("ALTER TABLE messages DROP COLUMN session_language")
