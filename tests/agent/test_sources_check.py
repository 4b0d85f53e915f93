"""What `agent check` says of sources and sinks, and what agent.toml may say of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from agents import Board

from edgekit.agent.check import _messages, _sinks, _source
from edgekit.agent.config import Config, Sink, Source, load_config
from edgekit.core.errors import BadInput, MissingExtra


@pytest.fixture
def board(tmp_path: Path) -> Board:
    for name in ("root.json", "control.pub"):
        (tmp_path / name).write_text("{}")
    settings: dict[str, dict[str, Any]] = {
        "device": {"fleet": "demo", "name": "pi5", "profile": "raspberrypi5"},
        "broker": {"host": "127.0.0.1"},
        "repository": {"url": "http://127.0.0.1:1/repo"},
    }
    return Board(tmp_path, "pi5", settings)


def load(board: Board, source: dict[str, Any] | None = None, *sinks: dict[str, Any]) -> Config:
    board.write(source=source or {})
    text = board.config.read_text()
    for sink in sinks:
        text += "[[sink]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in sink.items())
    board.config.write_text(text)
    return load_config(board.config)


def said(config: Config) -> list[tuple[str, str, int]]:
    return [(p.what, p.detail, p.exit_code) for look in (_messages, _sinks) for p in look(config)]


def test_topics_are_named(board: Board) -> None:
    config = load(board, {"kind": "mqtt"}, {"kind": "mqtt"})
    assert said(config) == [
        (
            "source",
            "takes inputs from edgekit/v1/demo/pi5/input: at most 16 wait, of 4194304 bytes at most",
            0,
        ),
        ("sink", "sends answers to edgekit/v1/demo/pi5/answer", 0),
    ]


def test_inputs_by_message_that_nobody_answers_are_named(board: Board) -> None:
    found = said(load(board, {"kind": "mqtt"}, {"kind": "stdout"}))
    assert ("source", "inputs come by message, and no sink of kind mqtt answers them", 1) in found


def test_a_sink_without_a_source_is_named(board: Board) -> None:
    assert said(load(board, None, {"kind": "stdout"})) == [
        ("sink", "there is a sink, and no source whose answers it would get", 1)
    ]


def test_a_sink_that_cannot_work_is_named_and_nothing_is_left_behind(board: Board) -> None:
    (board.folder / "readonly").mkdir()
    before = set(board.folder.rglob("*")) | {board.config}
    config = load(
        board,
        {"kind": "stdin"},
        {"kind": "file", "path": "fine.jsonl"},
        {"kind": "file", "path": "nowhere/a.jsonl"},
        {"kind": "file"},
        {"kind": "printer"},
        {"kind": "file", "path": "/proc/a.jsonl"},
    )
    found = said(config)
    assert [code for _, _, code in found] == [2, 2, 2, 3]
    for (_, detail, _), text in zip(
        found, ("nowhere/a.jsonl", "needs a path", "unknown sink 'printer'", "cannot be written"), strict=True
    ):
        assert text in detail
    assert set(board.folder.rglob("*")) == before


def test_a_camera_without_opencv_is_named(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match="needs OpenCV"):
        _source(load(board, {"kind": "camera", "device": 0}))


def test_every_key_is_read_and_paths_are_relative_to_the_config(board: Board) -> None:
    source = {
        "kind": "folder",
        "path": "in",
        "watch": True,
        "done": "move:done",
        "rate_hz": 5,
        "device": "clip.mp4",
        "exit_at_end": True,
        "max_input_bytes": 5000,
        "max_waiting": 3,
    }
    sink = {"kind": "file", "path": "a.jsonl", "max_mb": 1, "keep": 2, "outputs": True, "qos": 1}
    config = load(board, source, sink, {"kind": "stdout"})
    folder = board.folder
    assert config.unknown == ()
    assert config.source == Source(
        "folder",
        folder / "in",
        loop=False,
        rate_hz=5.0,
        watch=True,
        move_to=folder / "done",
        device=str(folder / "clip.mp4"),
        exit_at_end=True,
        max_input_bytes=5000,
        max_waiting=3,
    )
    assert config.sinks == (
        Sink("file", outputs=True, path=folder / "a.jsonl", max_bytes=2**20, keep=2, qos=1),
        Sink("stdout"),
    )


@pytest.mark.parametrize("device", [0, "/dev/video0", "rtsp://camera/stream"])
def test_a_number_an_absolute_path_and_an_address_stay_as_they_are(board: Board, device: Any) -> None:
    assert load(board, {"kind": "camera", "device": device}).source.device == device


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"done": "burn"}, "source.done must be keep, delete or move:FOLDER"),
        ({"done": "move:"}, "source.done must be keep, delete or move:FOLDER"),
        ({"device": True}, "source.device must be a text"),
        ({"device": -1}, "source.device must be a whole number from 0"),
        ({"max_waiting": 0}, "source.max_waiting must be a whole number from 1"),
        ({"max_input_bytes": 10}, "source.max_input_bytes must be a whole number from 1024"),
        ({"watch": "yes"}, "source.watch must be true or false"),
    ],
)
def test_a_wrong_source_key_is_named(board: Board, source: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        load(board, {"kind": "none", **source})


@pytest.mark.parametrize(
    ("sink", "text"),
    [
        ({}, r"sink\[0\].kind must be a text, got nothing"),
        ({"kind": "file", "qos": 2}, r"sink\[0\].qos must be a whole number from 0 to 1"),
        ({"kind": "file", "max_mb": 0}, r"sink\[0\].max_mb must be a number from"),
        ({"kind": "file", "keep": -1}, r"sink\[0\].keep must be a whole number"),
    ],
)
def test_a_wrong_sink_key_is_named(board: Board, sink: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        load(board, None, sink)


def test_sinks_that_are_no_tables_are_refused_and_an_unknown_key_is_named(board: Board) -> None:
    board.write(source={})
    text = board.config.read_text()
    board.config.write_text(text + "[sink]\nkind = 'stdout'\ncolour = 'red'\n")
    assert load_config(board.config).unknown == ("sink.colour",)
    board.config.write_text("sink = 3\n" + text)
    with pytest.raises(BadInput, match="sink must be a list of at least one table, got 3"):
        load_config(board.config)
