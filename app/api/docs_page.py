"""`/docs`: the OpenAPI document for people, by Swagger UI.

Scripts and styles come from here (the wheel `fastapi-swagger` carries them), so the page works in a closed network, and nobody
else's server is asked by a browser that is about to hold an API key. `Content-Security-Policy` holds the page to that.
"""

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

_ASSETS = "docs/assets"
_OWN_ALONE = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def install_docs(app: FastAPI) -> None:
    """Add the page and what it is made of."""
    app.mount(f"/{_ASSETS}", StaticFiles(packages=[("fastapi_swagger", "resources")]))
    page = get_swagger_ui_html(
        # Relative to the page, so a proxy may put all of it under any path.
        openapi_url="openapi.json",
        title=app.title,
        swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{_ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{_ASSETS}/favicon-32x32.png",
        # By default the page has a validator on the Internet look at the document.
        swagger_ui_parameters={"validatorUrl": None},
    )
    page.headers["content-security-policy"] = _OWN_ALONE

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return page
