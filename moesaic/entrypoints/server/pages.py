"""GET /: the dashboard. Static files, open to all, under a policy that lets the page load nothing from elsewhere."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parent / "dashboard"
# Scripts and styles from files of this server alone, no data but this server's, no HTML made from text.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
router = APIRouter()


class Assets(StaticFiles):
    """The page's scripts, styles and pictures, under the page's own policy."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """One of them."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


@router.get("/", include_in_schema=False)
async def dashboard() -> FileResponse:
    """The page."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


def install(app: FastAPI) -> None:
    """The page and what it loads."""
    app.include_router(router)
    app.mount("/dashboard", Assets(directory=FOLDER), name="dashboard")
