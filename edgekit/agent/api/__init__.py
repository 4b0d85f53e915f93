"""The local API: the Open Inference Protocol, version 2, over HTTP on loopback or a Unix socket (extra `api`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.agent import config
from edgekit.agent.runner import Runner

if TYPE_CHECKING:
    from edgekit.agent.api.server import Api


def open_api(api: config.Api | None, runner: Runner, version: str) -> Api | None:
    """The local API that the config asks for, listening; None where it asks for none, and then nothing is loaded.

    Raises MissingExtra without uvicorn, BadInput or WorldFailed where the address cannot be had.
    """
    if api is None:
        return None
    from edgekit.agent.api.server import Api

    return Api(api, runner, version)
