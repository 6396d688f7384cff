"""Adjourn: sessions of chatbots, opened and closed by rules, committed in Redis, archived in Postgres, announced by webhook.

Each package is one stage of a message's life or one server that it passes; docs/architecture.md has the map, and `import-linter`
keeps imports pointing one way. Modules at this level are entry points (`main`, `worker`, `cli`) or serve every layer.
"""

VERSION = "0.1.0"
