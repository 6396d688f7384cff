"""The console as an app of its own under `/console`: its routes, who may ask for them, and how it shows what was refused."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from msgspec import Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from app.console import bots, home, metrics, operations, sessions, webhooks
from app.console.api_calls import ApiCalls, Refusal
from app.console.forms import Document
from app.console.pages import STATIC, html
from app.console.sign_in import COOKIE, COOKIE_LIFE_S, Signer, check_origin
from app.console.visit import PREFIX, THEME_COOKIE, THEMES, Act, Show, Visit, checked_form, form_of, frame
from app.errors import AdjournError
from app.ids import key_digest
from app.resources import Resources

PAGES: Mapping[str, Show] = {
    "/": home.show,
    "/live": sessions.live,
    "/sessions": sessions.closed,
    "/sessions.{kind}": sessions.export,
    "/sessions/{session_id}": sessions.one,
    "/metrics": metrics.show,
    "/bots": bots.every,
    "/bots/{bot}": bots.one,
    "/bots/{bot}/versions": bots.versions,
    "/bots/{bot}/sandbox": bots.sandbox,
    "/webhooks": webhooks.every,
    "/webhooks/endpoints/{endpoint_id}": webhooks.endpoint,
    "/webhooks/deliveries/{delivery_id}": webhooks.delivery,
    "/keys": operations.keys,
    "/audit": operations.audit,
    "/rejects": operations.rejects,
    "/rejects/{reject_id}": operations.reject,
    "/system": operations.system,
}
"""Every page by its path."""

STREAMS: Mapping[str, Show] = {"/live/events": sessions.events}
"""Answers that go on until the browser ends them."""

ACTIONS: Mapping[str, Act] = {
    "/sessions/views": sessions.save_view,
    "/sessions/views/delete": sessions.delete_view,
    "/sessions/{session_id}/close": sessions.close,
    "/bots": bots.create,
    "/try": bots.try_out,
    "/bots/{bot}/preview": bots.preview,
    "/bots/{bot}/policy": bots.save,
    "/bots/{bot}/restore": bots.restore,
    "/bots/{bot}/sandbox/entry": bots.report,
    "/bots/{bot}/sandbox/clock": bots.advance,
    "/webhooks": webhooks.create,
    "/webhooks/endpoints/{endpoint_id}": webhooks.change,
    "/webhooks/endpoints/{endpoint_id}/delete": webhooks.delete,
    "/webhooks/endpoints/{endpoint_id}/test": webhooks.test,
    "/webhooks/endpoints/{endpoint_id}/rotate": webhooks.rotate,
    "/webhooks/deliveries/{delivery_id}/replay": webhooks.replay,
    "/keys": operations.create_key,
    "/keys/{key_id}/revoke": operations.revoke_key,
    "/rejects/replay": operations.replay_rejects,
    "/rejects/{reject_id}/replay": operations.replay_reject,
}
"""Every form by the path that it is sent to."""

_YEAR_S = 365 * 86_400
REFRESH_LIFE_S = 0.5
"""No longer than `console.js` waits after an event, so that no page gets a rendering from before it."""
REFRESH_HEADER = "x-refresh"
"""Sent by `console.js` when it renews the live parts of a page."""


class _Refresh(Struct, frozen=True):
    """A page that is rendered for all browsers that refresh it at about the same time."""

    page: asyncio.Task[Response]
    csrf: str  # the token in it
    ends: float  # on the loop's clock


class Console:
    """Knows the app that it calls, and signs cookies."""

    def __init__(self, api: FastAPI) -> None:
        self._api = api
        self._signer: Signer | None = None
        self._document_read: Document | None = None
        self._refreshes: dict[tuple[bytes, str, str], _Refresh] = {}

    def app(self) -> Starlette:
        routes: list[BaseRoute] = [
            Mount("/static", StaticFiles(directory=STATIC)),
            Route("/sign-in", self._show_sign_in, methods=["GET"]),
            Route("/sign-in", self._sign_in, methods=["POST"]),
            Route("/theme", self._choose_theme, methods=["POST"]),
            Route("/sign-out", self._sign_out, methods=["POST"]),
            *(Route(path, self._shown(show), methods=["GET"]) for path, show in {**PAGES, **STREAMS}.items()),
            *(Route(path, self._acted(act), methods=["POST"]) for path, act in ACTIONS.items()),
        ]
        handlers = {Refusal: self._refused, AdjournError: self._failed, HTTPException: self._no_page}
        made = Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]  # each takes its own class
        made.state.version = self._api.version
        made.state.docs_here = self._api.state.ports.all_paths_on_one
        return made

    @property
    def _resources(self) -> Resources:
        resources: Resources = self._api.state.resources
        return resources

    @property
    def _signing(self) -> Signer:
        if self._signer is None:
            self._signer = Signer(self._resources.pipe)
        return self._signer

    @property
    def _document(self) -> Document:
        if self._document_read is None:
            self._document_read = Document(self._api.openapi())
        return self._document_read

    def _shown(self, show: Show) -> Any:  # noqa: ANN401 - an endpoint of Starlette
        async def endpoint(request: Request) -> Response:
            visit = await self._visit(request)
            if visit is None:
                return _to_sign_in(request)
            return await (self._refresh(visit, show) if REFRESH_HEADER in request.headers else show(visit))

        return endpoint

    async def _refresh(self, visit: Visit, show: Show) -> Response:
        """The page as it was rendered a moment ago for this key, address and theme, with this sign-in's own token.

        An event makes all open pages refresh at once; without this each would be rendered, and entries would wait.
        """
        now = asyncio.get_running_loop().time()
        for known in [known for known, refresh in self._refreshes.items() if refresh.ends < now]:
            del self._refreshes[known]
        which = (visit.sign_in.digest, str(visit.request.url), visit.request.cookies.get(THEME_COOKIE, ""))
        shared = self._refreshes.get(which)
        if shared is None:
            # A task of its own: the browser that asked first may end its request.
            shared = _Refresh(asyncio.create_task(show(visit)), visit.sign_in.csrf, ends=now + REFRESH_LIFE_S)
            self._refreshes[which] = shared
        page = await asyncio.shield(shared.page)
        body = bytes(page.body).replace(shared.csrf.encode(), visit.sign_in.csrf.encode())
        return Response(body, page.status_code, {name: page.headers[name] for name in page.headers if name != "content-length"})

    def _acted(self, act: Act) -> Any:  # noqa: ANN401 - an endpoint of Starlette
        async def endpoint(request: Request) -> Response:
            check_origin(request.headers.get("sec-fetch-site"))
            visit = await self._visit(request)
            return _to_sign_in(request) if visit is None else await act(visit, await checked_form(visit))

        return endpoint

    async def _visit(self, request: Request) -> Visit | None:
        """The visit of a request; None unless it carries a valid cookie of a key that the API accepts."""
        now_ms, config = self._resources.clock.now_ms(), self._resources.config
        sign_in = await self._signing.read(request.cookies.get(COOKIE, ""), now_ms=now_ms)
        key = None if sign_in is None else config.key(sign_in.digest)
        if sign_in is None or key is None or not key.accepted_at(now_ms):
            return None
        api = ApiCalls(self._api, digest=sign_in.digest, outer=request.scope)
        bots = [bot for bot in config.bots() if key.bots is None or bot.id in key.bots]
        visit = Visit(
            request, key, sign_in, api, bots=sorted(bots, key=lambda bot: bot.id), now_ms=now_ms, document=self._document
        )
        request.state.visit = visit
        return visit

    async def _show_sign_in(self, request: Request) -> Response:
        return html("sign_in.html", frame(request, "Sign in") | {"wrong": False, "next": _next(request.query_params)})

    async def _sign_in(self, request: Request) -> Response:
        check_origin(request.headers.get("sec-fetch-site"))
        fields = await form_of(request)
        digest = key_digest(fields.get("key", "").strip())
        key, now_ms = self._resources.config.key(digest), self._resources.clock.now_ms()
        if key is None or not key.accepted_at(now_ms):
            return html("sign_in.html", frame(request, "Sign in") | {"wrong": True, "next": _next(fields)}, status=401)
        cookie = await self._signing.cookie(digest, now_ms=now_ms)
        answer = RedirectResponse(_next(fields), status_code=303)
        _set_cookie(answer, request, COOKIE, cookie, life_s=COOKIE_LIFE_S)
        return answer

    async def _sign_out(self, request: Request) -> Response:
        check_origin(request.headers.get("sec-fetch-site"))
        answer = _to_sign_in(request)
        answer.delete_cookie(COOKIE, path=PREFIX)
        return answer

    async def _choose_theme(self, request: Request) -> Response:
        check_origin(request.headers.get("sec-fetch-site"))
        fields = await form_of(request)
        answer = RedirectResponse(_next(fields), status_code=303)
        if fields.get("theme") in THEMES:
            _set_cookie(answer, request, THEME_COOKIE, fields["theme"], life_s=_YEAR_S)
        return answer

    async def _refused(self, request: Request, refusal: Refusal) -> Response:
        """The page of a problem that the API answered. A key that was revoked meanwhile is signed out."""
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            return _to_sign_in(request)
        return _problem_page(request, refusal.problem)

    async def _failed(self, request: Request, error: AdjournError) -> Response:
        return _problem_page(request, {"status": error.status, "title": error.title, "detail": error.detail, "hint": error.hint})

    async def _no_page(self, request: Request, error: HTTPException) -> Response:
        title = "There is no such page" if error.status_code == HTTPStatus.NOT_FOUND else HTTPStatus(error.status_code).phrase
        return _problem_page(request, {"status": error.status_code, "title": title, "detail": request.url.path})


def install_console(app: FastAPI) -> None:
    """Add the console, and lead there from the root."""
    app.mount(PREFIX, Console(app).app())
    for path in ("/", PREFIX):
        app.add_route(path, _to_home, include_in_schema=False)


async def _to_home(_request: Request) -> Response:
    return RedirectResponse(f"{PREFIX}/", status_code=307)


def _problem_page(request: Request, problem: Mapping[str, Any]) -> Response:
    visit: Visit | None = getattr(request.state, "visit", None)
    values = {"problem": {"hint": "", "errors": [], **problem}}
    if visit is not None:
        return visit.page("problem.html", title=problem["title"], status=problem["status"], **values)
    return html("problem.html", frame(request, problem["title"]) | values, status=problem["status"])


def _to_sign_in(request: Request) -> Response:
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    back = f"?next={quote(asked)}" if request.method == "GET" and asked != f"{PREFIX}/" else ""
    return RedirectResponse(f"{PREFIX}/sign-in{back}", status_code=303)


def _next(fields: Mapping[str, str]) -> str:
    """The page to go on to: one of the console's, never another site."""
    wanted = fields.get("next", "")
    return wanted if wanted.startswith(f"{PREFIX}/") and "\\" not in wanted and wanted.isprintable() else f"{PREFIX}/"


def _set_cookie(answer: Response, request: Request, name: str, value: str, *, life_s: int) -> None:
    secure = request.url.scheme == "https"
    answer.set_cookie(name, value, max_age=life_s, path=PREFIX, secure=secure, httponly=True, samesite="lax")
