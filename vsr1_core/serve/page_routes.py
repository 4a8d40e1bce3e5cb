"""The page: one HTML file and what it loads, from the folder `page` of this package."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from vsr1_core.serve.data_routes import NOT_THERE

PAGE = Path(__file__).resolve().parent / "page"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {path.name: path for path in PAGE.iterdir() if path.suffix in MEDIA_TYPES}
"""The files of the page by name; no other file can be asked for."""
router = APIRouter(include_in_schema=False)


@router.get("/")
def index() -> FileResponse:
    """The page."""
    return _file("index.html")


@router.get("/page/{name}", responses=NOT_THERE)
def part(name: str) -> FileResponse:
    """What the page loads."""
    if name not in FILES:
        raise LookupError(f"the page has no file {name!r}")
    return _file(name)


def _file(name: str) -> FileResponse:
    # Revalidated each time, so that a page from before an update never meets the scripts from after it.
    return FileResponse(FILES[name], media_type=MEDIA_TYPES[FILES[name].suffix], headers={"Cache-Control": "no-cache"})
