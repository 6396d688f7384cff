"""What a first start shows: the key, once, and three commands that work when pasted."""

from __future__ import annotations

import json
import shlex

BOT = "demo"


def welcome(url: str, key: str) -> str:
    commands = "\n".join(f"  {command}" for command in curl_lines(url, key))
    return f"""
An admin key was made. It is shown this once and kept nowhere:

  {key}

Make a bot, post a message to it, look at its open sessions:

{commands}"""


def curl_lines(url: str, key: str) -> list[str]:
    """Give three commands for a shell: make a bot, post a message, show the open sessions."""
    bots = f"{url}/v1/bots"
    message = {"user_id": "ann", "role": "user", "text": "Hello"}
    return [
        _curl(bots, key, body={"id": BOT}),
        _curl(f"{bots}/{BOT}/messages", key, body=message),
        _curl(f"{bots}/{BOT}/live", key),
    ]


def _curl(url: str, key: str, *, body: object = None) -> str:
    words = ["curl", "-sS", url, "-H", f"Authorization: Bearer {key}"]
    if body is not None:
        words += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return shlex.join(words)
