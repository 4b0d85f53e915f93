"""Where inputs come from: a table of kinds, one a file. A source hands inputs over; answers are the sinks' business."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgekit.agent import config
from edgekit.agent.sources.base import Input, Source, Taker
from edgekit.agent.sources.camera import open_camera
from edgekit.agent.sources.folder import FolderSource
from edgekit.agent.sources.mqtt import MqttSource
from edgekit.agent.sources.nothing import NoSource
from edgekit.agent.sources.spool import SpoolSource
from edgekit.agent.sources.stdin import StdinSource
from edgekit.core import registry
from edgekit.core.errors import BadInput

__all__ = ["SOURCES", "Input", "Source", "Taker", "open_source"]


def _folder(source: config.Source) -> Source:
    if source.path is None:
        raise BadInput("source folder needs a path")
    if not source.path.exists():
        raise BadInput(f"source folder: path must be a folder of images, {source.path} is not there")
    if not source.watch:
        if source.delete or source.move_to is not None:
            raise BadInput("source folder: done goes with watch = true")
        return FolderSource(source.path, loop=source.loop, rate_hz=source.rate_hz)
    if source.loop:
        raise BadInput("source folder: loop and watch are two ways to go on, choose one")
    if not source.path.is_dir():
        raise BadInput(f"source folder: watch needs a folder, {source.path} is a file")
    return SpoolSource(source.path, delete=source.delete, target=source.move_to, rate_hz=source.rate_hz)


def _mqtt(source: config.Source) -> Source:
    return MqttSource(source.max_input_bytes, source.max_waiting)


def _stdin(source: config.Source) -> Source:
    return StdinSource(source.max_input_bytes)


SOURCES: Mapping[str, Callable[[config.Source], Source]] = {
    "none": lambda source: NoSource(),
    "folder": _folder,
    "mqtt": _mqtt,
    "camera": open_camera,
    "stdin": _stdin,
}


def open_source(source: config.Source) -> Source:
    """The source that the config names. Raises BadInput; an unknown kind lists the known ones."""
    return registry.pick("source", SOURCES, source.kind)(source)
