"""Serve the signed repository's files to boards, with Range. Serves no key and nothing that is not published."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, JSONResponse, Response

from edgekit.core.checks import NAME
from edgekit.core.target import SUFFIXES
from edgekit.fleet.config import FleetConfig
from edgekit.repo.metadata import metadata_folder, target_file

_METADATA = re.compile(r"(?:[1-9]\d{0,9}\.)?(?:root|targets|measure|snapshot|timestamp)\.json")
_TARGET = re.compile(
    "|".join(rf"{use}/{NAME.pattern}/[1-9]\d{{0,9}}\.{suffix}" for use, suffix in SUFFIXES.items())
)


def repository_router(config: FleetConfig) -> APIRouter:
    """/repo/metadata/NAME and /repo/targets/PATH. The guard has checked the board's token."""
    router = APIRouter(prefix="/repo", include_in_schema=False)

    @router.api_route("/metadata/{name}", methods=["GET", "HEAD"])
    def metadata(name: str) -> Response:
        if not _METADATA.fullmatch(name):
            return missing()
        try:
            data = (metadata_folder(config.repository) / name).read_bytes()
        except FileNotFoundError:
            return missing()
        return Response(data, media_type="application/json", headers={"cache-control": "no-cache"})

    @router.api_route("/targets/{path:path}", methods=["GET", "HEAD"])
    def target(path: str) -> Response:
        file = published_file(config, path)
        return missing() if file is None else FileResponse(file, media_type="application/octet-stream")

    return router


def published_file(config: FleetConfig, path: str) -> Path | None:
    """The file of a target path, if there is one."""
    file = target_file(config.repository, path)
    return file if _TARGET.fullmatch(path) and file.is_file() else None


def missing() -> Response:
    """The answer for what is not there."""
    return JSONResponse({"error": "there is no such file"}, 404)
