"""One request of a signed-in browser: the key that it acts for, the API as that key, and the page that answers."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.config.records import BotConfig, KeyConfig
from app.console.api_calls import ApiCalls, ApiReply, Json, Refusal
from app.console.forms import Document
from app.console.pages import html
from app.console.sign_in import SignIn, check_token

PREFIX = "/console"
THEME_COOKIE = "adjourn_theme"
THEMES = ("light", "dark")
NAVIGATION = (
    ("/", "Home", {"ingest", "read", "admin"}),
    ("/live", "Live", {"read"}),
    ("/sessions", "Sessions", {"read"}),
    ("/metrics", "Metrics", {"read"}),
    ("/bots", "Bots", {"admin"}),
    ("/webhooks", "Webhooks", {"admin"}),
    ("/keys", "Keys", {"admin"}),
    ("/audit", "Audit", {"admin"}),
    ("/rejects", "Rejects", {"admin"}),
    ("/system", "System", {"ingest", "read", "admin"}),
)
"""Address, title, and the scopes of which a key needs one. It only hides links: the API decides, and a test compares the two."""

Fields = QueryParams
"""The fields of a form; of a name that is repeated, `[]` gives the last value and `getlist` all."""

Show = Callable[["Visit"], Coroutine[Any, Any, Response]]
Act = Callable[["Visit", Fields], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Visit:
    """A request with its sign-in."""

    request: Request
    key: KeyConfig
    sign_in: SignIn
    api: ApiCalls
    bots: list[BotConfig]  # those that the key covers
    now_ms: int
    document: Document

    @property
    def query(self) -> list[tuple[str, str]]:
        """The parameters of the address, without the notice and the empty ones: a form sends its empty fields, too."""
        return [(name, value) for name, value in self.request.query_params.multi_items() if value and name != "done"]

    def may(self, *scopes: str) -> bool:
        return not self.key.scopes.isdisjoint(scopes)

    @staticmethod
    def segment(text: str) -> str:
        """A text as one segment of a path."""
        return quote(text, safe="")

    def of_path(self, name: str) -> str:
        return str(self.request.path_params[name])

    def page(self, template: str, *, title: str, status: int = 200, **values: Any) -> Response:  # noqa: ANN401 - for templates
        """The page of a template."""
        around = frame(self.request, title) | {
            "visit": self,
            "csrf": self.sign_in.csrf,
            "navigation": [(PREFIX + path, label) for path, label, scopes in NAVIGATION if self.may(*scopes)],
        }
        return html(template, around | values, status=status)

    def go(self, path: str, **query: str) -> Response:
        """Send the browser to another page of the console."""
        return RedirectResponse(PREFIX + path + (f"?{urlencode(query)}" if query else ""), status_code=303)


def frame(request: Request, title: str) -> dict[str, Any]:
    """The values that every page needs, signed in or not."""
    theme = request.cookies.get(THEME_COOKIE)
    return {
        "title": title,
        "prefix": PREFIX,
        "path": request.url.path,
        "theme": theme if theme in THEMES else None,
        "visit": None,
        "notice": NOTICES.get(request.query_params.get("done", "")),
    }


NOTICES: Mapping[str, str] = {
    "closed": "The session is closed.",
    "saved": "The policy is saved. Open sessions follow it from now on.",
    "restored": "The version is restored as the latest one.",
    "advanced": "The clock was moved. What was due on the way is closed.",
    "reported": "The entry was taken.",
    "created": "It is created.",
    "changed": "It is changed.",
    "deleted": "It is deleted.",
    "revoked": "The key is revoked.",
    "tried": "Ann has written to this bot. Move its clock until her session closes, and open the session to see why.",
    "view_saved": "The view is saved for this key.",
    "replayed": "It is queued once more.",
}
"""The sentence that a page shows after an action, by the word in its address."""


async def form_of(request: Request) -> Fields:
    """The fields of a form."""
    return QueryParams((await request.body()).decode("utf-8", "replace"))


async def checked_form(visit: Visit) -> Fields:
    """The fields of a form of this sign-in. Raise `Forbidden` for any other."""
    fields = await form_of(visit.request)
    check_token(visit.sign_in, fields.get("csrf", ""))
    return fields


_IN_FORM = {HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED, HTTPStatus.UNPROCESSABLE_ENTITY}


async def in_form(call: Awaitable[ApiReply]) -> tuple[ApiReply | None, Json | None]:
    """The reply, or the problem if it is to be corrected in the form. Raises other refusals."""
    try:
        return await call, None
    except Refusal as refusal:
        if refusal.status not in _IN_FORM:
            raise
        return None, {"hint": "", "errors": [], **refusal.problem}
