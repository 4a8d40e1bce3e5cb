"""Errors as answers: which status, and what is said. A message never contains a path of this machine."""

from __future__ import annotations

import re

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from vsr1_core.home.correcting import Conflict
from vsr1_core.rows.files import WriteRefused
from vsr1_core.serve.engine import Busy

_ENDS = r"""[:;,)'"`](?=[\s:;,.)'"`]|$)"""
_FOLDERS = re.compile(rf"(?<![\w./])/(?:(?![\s/])(?:(?!{_ENDS})[^/\n])*(?<!\s)/)+")
"""Folders from the root on, with spaces in their names: up to the last slash before a sign that ends a path in a
sentence. A slash after a space begins another path."""


def without_folders(text: str) -> str:
    """A message without the folders of this machine: only names of files are left."""
    return _FOLDERS.sub("", text)


def answer_to(error: Exception) -> tuple[int, str]:
    """The status and the message of an error."""
    if isinstance(error, Busy):
        return 503, str(error)
    if isinstance(error, TimeoutError):
        return 504, str(error)
    if isinstance(error, WriteRefused):
        return 507, without_folders(str(error))
    if isinstance(error, OSError) and error.errno is None:  # the sentence is ours: files of the dataset are not there
        return 404, without_folders(str(error))
    if isinstance(error, OSError):
        return 404, "a file of this row is missing; build the dataset again"
    if isinstance(error, LookupError) and not isinstance(error, KeyError | IndexError):
        return 404, without_folders(str(error))
    if isinstance(error, Conflict):
        return 409, str(error)
    if isinstance(error, ValueError):
        return 400, without_folders(str(error))
    return 500, "the server made a mistake; its log says which"


def response_to(error: Exception) -> JSONResponse:
    """The answer to a request that ended with an error."""
    status, detail = answer_to(error)
    return JSONResponse({"detail": detail}, status, {"Retry-After": "2"} if status == 503 else None)


def add_to(app: FastAPI) -> None:
    """Answer known errors with their message, and others, which uvicorn logs, without it."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return response_to(error)

    for kind in (Busy, OSError, LookupError, ValueError, Exception):
        app.add_exception_handler(kind, answer)
