#!/usr/bin/env python3
"""Make the inputs on which the public networks are judged, and print each one's folder. A script: never imported.

    python tools/make_data.py --list
    python tools/make_data.py resnet8 magika           (or --all)

Each folder, EDGEKIT_CACHE/data/NAME, has calib.npz, val.npz and test.npz (`x`, and `y` where there are labels), and
spec.toml for `edgekit convert --input-spec`. The three parts share no photograph, recording, line of text or file.
The same seed makes the same arrays, but for magika: its inputs are this machine's own files below /usr.

Only Fashion-MNIST and text direction have labels. The rest is there to see how far a converted network agrees with the
float one, so the inputs need to be plausible, and are: crops of photographs with random light; words from a speech
synthesizer and recorded speech, in noise, through a front end written after the published description of TensorFlow's
microfrontend and of the networks' settings (not bit-exact with it); rendered lines of text; notes of made-up
instruments. Needs numpy and pillow, and what fetch_models.py and fetch_data.py fetch.
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import hashlib
import json
import math
import os
import string
import subprocess
import sys
import wave
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

Array = NDArray[Any]
Random = np.random.Generator
Arrays = dict[str, Array]
T = TypeVar("T")

PARTS = ("calib", "val", "test")
SHARES = (1, 1, 3)  # of five sources in a row: how many feed each part
FETCH_MODELS = Path(__file__).with_name("fetch_models.py")
FETCH_DATA = Path(__file__).with_name("fetch_data.py")


class CannotMake(Exception):
    """Something that inputs are made of is not there; the text says what."""


def cache_root() -> Path:
    named = os.environ.get("EDGEKIT_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "edgekit"


def fetched(script: Path, *names: str) -> list[Path]:
    """The folders a fetching script prints; it says itself what went wrong. Raises CannotMake."""
    done = subprocess.run(
        [sys.executable, str(script), *names], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise CannotMake(f"{script.name} {' '.join(names)} failed")
    return [Path(line) for line in done.stdout.splitlines()]


def share(sources: list[T], part: str) -> list[T]:
    """The sources of one part: none is in two."""
    owners = [name for name, count in zip(PARTS, SHARES, strict=True) for _ in range(count)]
    found = [each for index, each in enumerate(sources) if owners[index % len(owners)] == part]
    if not found:
        raise CannotMake(f"only {len(sources)} sources, none is left for {part}")
    return found


# --- photographs -------------------------------------------------------------------------------------------------


@cache
def photographs(folders: tuple[Path, ...], smallest: int) -> list[Image.Image]:
    """All images below the folders with at least `smallest` pixels on their shorter side, none above 1,600."""
    found = []
    for path in sorted(each for folder in folders for each in folder.rglob("*")):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
            with Image.open(path) as image:
                image.load()
                image.thumbnail((1600, 1600))
                if min(image.size) >= smallest:
                    found.append(image.convert("RGB"))
    return found


def crop(image: Image.Image, size: int, random: Random) -> Image.Image:
    """A random square of a photograph, mirrored half of the time, in a random light, `size` pixels wide."""
    shorter = min(image.size)
    side = int(shorter * random.uniform(max(0.3, min(1.0, size / shorter)), 1.0))
    left, top = (int(random.integers(0, whole - side + 1)) for whole in image.size)
    made = image.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
    if random.random() < 0.5:
        made = made.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        made = kind(made).enhance(float(random.uniform(0.6, 1.4)))
    return made


def crops(size: int, part: str, count: int, random: Random, folders: list[Path]) -> Arrays:
    """uint8 (count, size, size, 3)."""
    sources = share(photographs(tuple(folders), 32 if size < 96 else size), part)
    chosen = random.integers(0, len(sources), count)
    return {"x": np.stack([np.asarray(crop(sources[index], size, random)) for index in chosen])}


def grey_crops(size: int, part: str, count: int, random: Random, folders: list[Path]) -> Arrays:
    """float32 (count, size, size, 1): each of mean 0 and deviation 1, as the network's own generator made them."""
    sources = share(photographs(tuple(folders), size), part)
    images = np.empty((count, size, size, 1), np.float32)
    for row, index in enumerate(random.integers(0, len(sources), count)):
        grey = np.asarray(crop(sources[index], size, random).convert("L"), np.float32)
        images[row, :, :, 0] = (grey - grey.mean()) / (grey.std() + 1e-6)
    return {"x": images}


# --- speech ------------------------------------------------------------------------------------------------------

RATE = 16_000
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "alexa")
OTHER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "bed", "bird", "cat"),
    *("dog", "happy", "house", "marvin", "sheila", "tree", "wow", "backward", "forward", "follow", "learn"),
    *("visual", "window", "table", "music", "water", "morning", "open", "close", "light", "garden", "paper"),
)
VOICES = tuple(
    f"{accent}{variant}"
    for variant in ("", "+m1", "+m3", "+m5", "+m7", "+f1", "+f2", "+f3", "+f4", "+f5")
    for accent in ("en-us", "en-gb-scotland", "en-gb-x-rp")
)
_SYNCHRONOUS, _UTF8, _RATE, _PITCH = 2, 1, 1, 3  # espeak-ng's speak_lib.h


def spoken(folder: Path, random: Random) -> Iterator[Array]:
    """Every word by every voice at a random speed and pitch: float32 in [-1, 1] at 16 kHz. Raises CannotMake."""
    try:
        library = ctypes.CDLL(str(folder / "libespeak-ng.so"))
    except OSError as err:
        raise CannotMake(f"espeak-ng cannot be loaded: {err}") from err
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(folder).encode(), 0)
    if rate <= 0:
        raise CannotMake(f"espeak-ng did not start with the data in {folder}")
    pieces: list[Array] = []

    def receive(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    kept = kind(receive)  # as long as the synthesizer may call it
    library.espeak_SetSynthCallback(kept)
    for voice in VOICES:
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise CannotMake(f"espeak-ng has no voice {voice}")
        for word in (*KEYWORDS, *OTHER_WORDS):
            library.espeak_SetParameter(_RATE, int(random.integers(110, 220)), 0)
            library.espeak_SetParameter(_PITCH, int(random.integers(20, 80)), 0)
            text = word.encode()
            pieces.clear()
            library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None)
            library.espeak_Synchronize()
            whole = np.concatenate(pieces).astype(np.float32) / 32768
            yield resampled(whole, rate, RATE)
    library.espeak_Terminate()


def resampled(samples: Array, have: int, want: int) -> Array:
    """By linear interpolation: good enough for speech that is to be put in noise."""
    at = np.arange(int(len(samples) * want / have)) * (have / want)
    made: Array = np.interp(at, np.arange(len(samples)), samples).astype(np.float32)
    return made


def recorded(folder: Path) -> list[Array]:
    """Recorded speech, each sentence float32 in [-1, 1] at 16 kHz."""
    found = []
    for path in sorted(folder.rglob("*.wav")):
        with wave.open(str(path)) as file:
            raw = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
            found.append(resampled(raw, file.getframerate(), RATE))
    return found


@cache
def vocabulary(espeak: Path, seed: int) -> tuple[Array, ...]:
    """All synthesized words, in a random order; the synthesizer starts but once in a process."""
    words = list(spoken(espeak, np.random.default_rng(seed)))
    order = np.random.default_rng(seed).permutation(len(words))
    return tuple(words[index] for index in order)


def scene(words: list[Array], speech: list[Array], length: int, random: Random) -> Array:
    """A second or so, as a microphone would hear it: a word, or a stretch of speech, or nothing, in some noise."""
    kind = random.random()
    sound = np.zeros(length, np.float32)
    if kind < 0.85:
        word = words[int(random.integers(len(words)))]
        word = resampled(word, 1000, int(random.integers(900, 1100)))[:length]
        at = int(random.integers(0, length - len(word) + 1))
        sound[at : at + len(word)] = word
    elif kind < 0.95:
        sentence = speech[int(random.integers(len(speech)))]
        at = int(random.integers(0, max(1, len(sentence) - length)))
        piece = sentence[at : at + length]
        sound[: len(piece)] = piece
    white = random.normal(0, 1, length)
    brown = np.cumsum(white - white.mean()) / math.sqrt(length)
    noise = white if random.random() < 0.5 else brown
    power = float(np.sqrt(np.mean(sound**2))) or 0.01
    noise = noise / np.sqrt(np.mean(noise**2)) * power * 10 ** (-random.uniform(5, 40) / 20)
    loud = (sound + noise) * random.uniform(0.1, 1.0)
    made: Array = np.clip(loud, -1, 1).astype(np.float32)
    return made


@dataclass(frozen=True)
class FrontEnd:
    """A spectrogram's settings. steps: how its logarithm becomes the network's input."""

    window_ms: int
    step_ms: int
    channels: int
    low_hz: float
    high_hz: float
    denoise: float  # the least share of a signal that noise reduction leaves; 1: none

    def mel_weights(self, bins: int) -> Array:
        """(bins, channels): triangles, equally wide on the mel scale."""

        def mel(hertz: Array | float) -> Array:
            return np.asarray(1127 * np.log(1 + np.asarray(hertz) / 700))

        edges = np.linspace(mel(self.low_hz), mel(self.high_hz), self.channels + 2)
        at = mel(np.linspace(0, RATE / 2, bins))[:, None]
        rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
        return np.maximum(0, np.minimum(rising, falling))

    def log_spectrogram(self, sound: Array) -> Array:
        """(frames, channels) of 64 * ln(amplitude), never below 0, as the microfrontend gives it."""
        window, step = RATE * self.window_ms // 1000, RATE * self.step_ms // 1000
        size = 1 << (window - 1).bit_length()
        frames = np.lib.stride_tricks.sliding_window_view(sound * 32768, window)[::step]
        spectrum = np.fft.rfft(frames * np.hanning(window), size)
        energy = np.abs(spectrum) ** 2
        amplitude = np.sqrt(energy @ self.mel_weights(energy.shape[1])) / 8
        smoothing = np.where(np.arange(self.channels) % 2 == 0, 0.025, 0.06)
        estimate = np.zeros(self.channels)
        cleaned = np.empty_like(amplitude)
        for index, frame in enumerate(amplitude):
            estimate += smoothing * (frame - estimate)
            cleaned[index] = np.maximum(frame - estimate, self.denoise * frame)
        return np.asarray(64 * np.log(np.maximum(cleaned, 1)))


def dynamic(spectrogram: Array) -> Array:
    """-128..127 over the loudest 40 dB of this spectrogram (20 * log10(e) / 64 dB a step)."""
    span = 40 / (20 * math.log10(math.e)) * 64
    top = spectrogram.max()
    steps: Array = np.clip((spectrogram - max(top - span, 0)) / max(min(span, top), 1) * 255, 0, 255)
    return steps - 128


def absolute(spectrogram: Array) -> Array:
    """0..255 over the microfrontend's usual range, which ends at 666."""
    return np.clip(spectrogram * 256 / 666, 0, 255)


def keywords(
    front: FrontEnd,
    scale: Callable[[Array], Array],
    shape: tuple[int, int, int],
    seed: int,
    part: str,
    count: int,
    random: Random,
    folders: list[Path],
) -> Arrays:
    """float32 (count, *shape), whole steps. folders: the recordings, the synthesizer."""
    speech, espeak = folders
    words = share(list(vocabulary(next(espeak.glob("*/libespeak-ng.so")).parent, seed)), part)
    sentences = share(recorded(speech), part)
    frames = shape[0]
    length = RATE * (front.window_ms + front.step_ms * (frames - 1)) // 1000
    made = np.empty((count, *shape), np.float32)
    for row in range(count):
        made[row] = np.round(
            scale(front.log_spectrogram(scene(words, sentences, length, random)))[:frames]
        ).reshape(shape)
    return {"x": made}


# --- notes -------------------------------------------------------------------------------------------------------

NOTE_RATE, NOTE_SAMPLES = 22_050, 43_844


def add_note(sound: Array, random: Random) -> None:
    """One note of a random pitch, timbre, beginning and length: up to twelve harmonics, struck and dying away."""
    pitch = 440 * 2 ** ((int(random.integers(33, 89)) - 69 + random.normal(0, 0.05)) / 12)
    begin, lasts = random.uniform(-0.2, 1.8), random.uniform(0.15, 1.5)
    start, stop = (int(np.clip(at * NOTE_RATE, 0, NOTE_SAMPLES)) for at in (begin, begin + lasts))
    span = slice(start, stop)
    since = np.arange(start, stop) / NOTE_RATE - begin
    count = int(min(12, NOTE_RATE / 2 / pitch))
    strength = random.uniform(0.3, 1, count) / np.arange(1, count + 1) ** random.uniform(0.5, 2.5)
    parts = strength * np.exp(2j * np.pi * random.uniform(0, 1, count))
    turning = np.exp(2j * np.pi * pitch * since)
    tone = np.zeros_like(turning)
    for part in parts[::-1]:  # Horner's scheme over the harmonics
        tone = (tone + part) * turning
    envelope = np.clip(since / 0.01, 0, 1) * np.exp(-random.uniform(0.5, 6) * np.maximum(since, 0))
    sound[span] += tone.imag * envelope * np.clip((lasts - since) / 0.05, 0, 1)


def notes(part: str, count: int, random: Random, folders: list[Path]) -> Arrays:
    """float16 (count, 43844, 1): one to six notes at a time on made-up instruments, a tenth of it speech."""
    speech = share(recorded(folders[0]), part)
    made = np.zeros((count, NOTE_SAMPLES, 1), np.float16)
    for row in range(count):
        sound = np.zeros(NOTE_SAMPLES)
        if random.random() < 0.1:
            sentence = resampled(speech[int(random.integers(len(speech)))], RATE, NOTE_RATE)
            at = int(random.integers(0, max(1, len(sentence) - NOTE_SAMPLES)))
            piece = sentence[at : at + NOTE_SAMPLES]
            sound[: len(piece)] = piece
        else:
            for _ in range(int(random.integers(1, 9))):
                add_note(sound, random)
        sound += random.normal(0, 10 ** random.uniform(-4, -2), NOTE_SAMPLES)
        made[row, :, 0] = sound / np.abs(sound).max() * random.uniform(0.2, 0.95)
    return {"x": made}


# --- text --------------------------------------------------------------------------------------------------------

WORDS = tuple(
    """
    time year people way day man thing woman life child world school state family student group country problem hand
    part place case week company system program question work government number night point home water room mother area
    money story fact month lot right study book eye job word business issue side kind head house service friend father
    power hour game line end member law car city community name president team minute idea kid body information back
    parent face others level office door health person art war history party result change morning reason research girl
    guy moment air teacher force education total price invoice date order
    """.split()  # noqa: SIM905  (a hundred quoted words say no more)
)
LINE_HEIGHT = 48


def line_of_text(random: Random) -> str:
    """Words, numbers, prices, codes: 2 to about 22 characters."""
    pieces = []
    for _ in range(int(random.integers(1, 4))):
        kind = random.random()
        if kind < 0.65:
            word = WORDS[int(random.integers(len(WORDS)))]
            pieces.append((word, word.capitalize(), word.upper())[int(random.integers(3))])
        elif kind < 0.8:
            pieces.append(str(int(random.integers(0, 10 ** int(random.integers(1, 7))))))
        elif kind < 0.9:
            pieces.append(f"{random.uniform(0, 999):.2f}" + ("", "$", "%")[int(random.integers(3))])
        else:
            letters = string.ascii_uppercase + string.digits + "-/:."
            pieces.append("".join(letters[int(each)] for each in random.integers(0, len(letters), 6)))
    return " ".join(pieces)[:24].strip()


def render(text: str, fonts: list[Path], random: Random) -> Image.Image:
    """The line, cut out as a text detector would: some margin, a little turned, some noise and blur."""
    font = ImageFont.truetype(
        str(fonts[int(random.integers(len(fonts)))]),
        int(random.integers(18, 52)),
        layout_engine=ImageFont.Layout.BASIC,
    )
    left, top, right, bottom = font.getbbox(text)
    margin = int(random.integers(1, 8))
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    back = random.integers(0, 256, 3)
    fore = (back + 128 + random.integers(-50, 51, 3)) % 256
    image = Image.new("RGB", size, tuple(int(each) for each in back))
    ImageDraw.Draw(image).text(
        (margin - left, margin - top), text, tuple(int(each) for each in fore), font=font
    )
    image = image.rotate(
        float(random.normal(0, 1)), Image.Resampling.BILINEAR, fillcolor=tuple(int(each) for each in back)
    )
    if random.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0, 1.2))))
    pixels = np.asarray(image, np.float32) + random.normal(0, random.uniform(0, 12), (*size[::-1], 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def padded(image: Image.Image, width: int) -> NDArray[np.uint8]:
    """48 pixels high, as wide as it comes up to `width`, the rest the grey that normalization makes zero."""
    wide = min(width, max(1, round(image.width * LINE_HEIGHT / image.height)))
    made = Image.new("RGB", (width, LINE_HEIGHT), (127, 127, 127))
    made.paste(image.resize((wide, LINE_HEIGHT), Image.Resampling.BILINEAR))
    return np.asarray(made)


def lines(width: int, part: str, count: int, random: Random, folders: list[Path], *, turned: bool) -> Arrays:
    """uint8 (count, 48, width, 3) and text; turned: half upside down, y tells which."""
    fonts = sorted(path for folder in folders for path in folder.rglob("*.ttf"))
    fonts = [font for font in fonts if "Math" not in font.name]
    if not fonts:
        raise CannotMake("no fonts")
    rows: list[Array] = []
    texts: list[str] = []
    upside_down: list[bool] = []
    while len(rows) < count:
        text = line_of_text(random)
        if not text or PARTS[zlib.crc32(text.encode()) % len(PARTS)] != part:  # each text is in one part only
            continue
        image = render(text, fonts, random)
        over = turned and random.random() < 0.5
        if over:
            image = image.transpose(Image.Transpose.ROTATE_180)
        rows.append(padded(image, width))
        texts.append(text)
        upside_down.append(over)
    made: Arrays = {"x": np.stack(rows), "text": np.array(texts)}
    return {**made, "y": np.array(upside_down, np.int64)} if turned else made


# --- files -------------------------------------------------------------------------------------------------------

FILE_ROOTS = ("/usr/share", "/usr/lib", "/usr/include")
BLOCK, EDGE, PADDING = 4096, 1024, 256  # magika 1.0's configuration
PER_KIND = 250  # at most so many files with the same suffix


def bytes_of(path: Path) -> NDArray[np.int32] | None:
    """magika's features: the first and last 1,024 bytes but white space; None for tiny or unreadable files."""
    try:
        with path.open("rb") as file:
            first = file.read(BLOCK)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - BLOCK))
            last = file.read(BLOCK)
    except OSError:
        return None
    first, last = first.lstrip()[:EDGE], last.rstrip()[-EDGE:]
    if len(first) < 16:
        return None
    row = np.full(2 * EDGE, PADDING, np.int32)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[2 * EDGE - len(last) :] = np.frombuffer(last, np.uint8)
    return row


def files_of(roots: tuple[str, ...], seed: int) -> list[Path]:
    """Files below the roots in an order that depends on their names only, few of each suffix."""
    found = [
        Path(folder) / name
        for root in roots
        for folder, _, names in os.walk(root)
        for name in names
        if not (Path(folder) / name).is_symlink()
    ]
    found.sort(key=lambda path: hashlib.sha256(f"{seed} {path}".encode()).digest())
    seen: dict[str, int] = {}
    kept = []
    for path in found:
        seen[path.suffix] = seen.get(path.suffix, 0) + 1
        if seen[path.suffix] <= PER_KIND:
            kept.append(path)
    return kept


def file_bytes(
    seed: int, part: str, count: int, random: Random, folders: list[Path], roots: tuple[str, ...] = FILE_ROOTS
) -> Arrays:
    """int32 (count, 2048)."""
    rows: list[Array] = []
    known = set()
    for path in share(files_of(roots, seed), part):
        row = bytes_of(path)
        if row is not None and row.tobytes() not in known:
            known.add(row.tobytes())
            rows.append(row)
        if len(rows) == count:
            return {"x": np.stack(rows)}
    raise CannotMake(f"{part} needs {count} different files below {', '.join(roots)}, there are {len(rows)}")


# --- Fashion-MNIST -----------------------------------------------------------------------------------------------


def fashion(part: str, count: int, random: Random, folders: list[Path]) -> Arrays:
    """uint8 (count, 28, 28) and labels: calibration and validation of the held-out training images, the test's test."""

    def read(name: str, header: int) -> NDArray[np.uint8]:
        return np.frombuffer(gzip.decompress((folders[0] / name).read_bytes()), np.uint8, offset=header)

    kind = "t10k" if part == "test" else "train"
    x = read(f"{kind}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    y = read(f"{kind}-labels-idx1-ubyte.gz", 8)
    first = {"calib": 55_000, "val": 57_000, "test": 0}[part]  # the demo model never saw the last 5,000
    rows = slice(first, first + min(count, 2_000 if part == "calib" else 10_000))
    return {"x": x[rows], "y": y[rows].astype(np.int64)}


# --- what there is -----------------------------------------------------------------------------------------------

Maker = Callable[..., Arrays]  # (part=, count=, random=, folders=) -> arrays
PHOTOS = ("photos_foolbox", "photos_skimage", "photos_sklearn", "photos_mate")
FONTS = ("fonts_dejavu", "fonts_liberation", "fonts_freefont")
SPEECH = ("speech", "espeak")
TENET = FrontEnd(window_ms=30, step_ms=10, channels=104, low_hz=125, high_hz=7500, denoise=0.4)
COARSE = FrontEnd(window_ms=30, step_ms=20, channels=10, low_hz=125, high_hz=4000, denoise=0.05)
IMAGE_SPEC = """[[input]]
name = "input_1"
layout = "NHWC"
preprocess = {{{how}}}
"""
TEXT_SPEC = """[[input]]
name = "x"
layout = "NCHW"
shape = [1, 3, 48, {width}]
preprocess = {{channels = "BGR", scale = 0.00392156862745098, mean = [0.5], std = [0.5]}}
"""


@dataclass(frozen=True)
class DataSet:
    """What one network is judged on. make: given the seed, who makes a part. test: how many inputs at the end."""

    what: str
    materials: tuple[str, ...]
    make: Callable[[int], Maker]
    spec: str = ""
    val: int = 1000
    test: int = 2000


def keyword_set(front: FrontEnd, scale: Any, shape: tuple[int, int, int]) -> Callable[[int], Maker]:
    return lambda seed: partial(keywords, front, scale, shape, seed)


DATA_SETS = {
    "fashion_mnist": DataSet(
        "clothes, labelled; for models/fashion_mnist_3exit.onnx", (), lambda _: fashion, test=10_000
    ),
    "resnet8": DataSet(
        "crops 32x32 of photographs",
        PHOTOS,
        lambda _: partial(crops, 32),
        IMAGE_SPEC.format(how='channels = "RGB", scale = 0.0078125, mean = [1.0]'),
    ),
    "visual_wake_words": DataSet(
        "crops 96x96 of photographs",
        PHOTOS,
        lambda _: partial(crops, 96),
        IMAGE_SPEC.format(how='channels = "RGB"'),
    ),
    "rock_paper_scissors": DataSet(
        "grey crops 84x84 of photographs", PHOTOS, lambda _: partial(grey_crops, 84)
    ),
    "ds_cnn": DataSet("words in noise, 50x10", SPEECH, keyword_set(COARSE, absolute, (50, 10, 1))),
    "kws_on_off": DataSet("words in noise, 98x104", SPEECH, keyword_set(TENET, dynamic, (98, 1, 104))),
    "kws_pacman": DataSet("words in noise, 98x104", SPEECH, keyword_set(TENET, dynamic, (98, 1, 104))),
    "text_direction": DataSet(
        "rendered lines, half upside down, labelled",
        FONTS,
        lambda _: partial(lines, 192, turned=True),
        TEXT_SPEC.format(width=192),
    ),
    "text_recognizer": DataSet(
        "rendered lines, their text beside",
        FONTS,
        lambda _: partial(lines, 320, turned=False),
        TEXT_SPEC.format(width=320),
    ),
    "magika": DataSet("this machine's files below /usr", (), lambda seed: partial(file_bytes, seed)),
    "basic_pitch": DataSet(
        "notes of made-up instruments, some speech", ("speech",), lambda _: notes, val=250
    ),
}


def random_of(seed: int, name: str, part: str) -> Random:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), PARTS.index(part)])


def make(name: str, counts: dict[str, int], seed: int, folder: Path, folders: list[Path]) -> None:
    """Write the three parts, each in one step. Raises CannotMake."""
    chosen = DATA_SETS[name]
    maker = chosen.make(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        arrays = maker(part=part, count=counts[part], random=random_of(seed, name, part), folders=folders)
        temporary = folder / f".{part}.part"
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        temporary.replace(folder / f"{part}.npz")
    (folder / "spec.toml").write_text(chosen.spec or "# nothing to say: the model takes tensors\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets to make; --list shows them")
    parser.add_argument("--all", action="store_true", help="every data set of the list")
    parser.add_argument("--list", action="store_true", help="print the names and what they are")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calib", type=int, default=256, help="inputs for calibration (256)")
    parser.add_argument("--val", type=int, help="inputs for validation (1000; basic_pitch 250)")
    parser.add_argument("--test", type=int, help="inputs for judging (2000; Fashion-MNIST 10000)")
    parser.add_argument("--out", type=Path, help="a folder other than EDGEKIT_CACHE/data")
    asked = parser.parse_args(arguments)
    if strangers := [name for name in asked.names if name not in DATA_SETS]:
        parser.error(f"no data set {strangers[0]!r}; there are {', '.join(DATA_SETS)}")
    if asked.list:
        for name, chosen in DATA_SETS.items():
            print(f"{name:20} {chosen.what}")
        return 0
    names = list(DATA_SETS) if asked.all else list(dict.fromkeys(asked.names))
    if not names:
        parser.error("name a data set, or give --all or --list")
    root = asked.out or cache_root() / "data"
    text = Path(__file__).read_bytes()
    for name in names:
        chosen, folder = DATA_SETS[name], root / name
        counts = {"calib": asked.calib, "val": asked.val or chosen.val, "test": asked.test or chosen.test}
        stamp = {"seed": asked.seed, "counts": counts, "script": hashlib.sha256(text).hexdigest()}
        made = folder / "made.json"
        if not made.is_file() or json.loads(made.read_text()) != stamp:
            print(f"make_data: making {name}", file=sys.stderr)
            try:
                folders = fetched(FETCH_MODELS, *chosen.materials) if chosen.materials else []
                if name == "fashion_mnist":
                    folders = fetched(FETCH_DATA)
                made.unlink(missing_ok=True)
                make(name, counts, asked.seed, folder, folders)
                made.write_text(json.dumps(stamp))
            except (CannotMake, OSError) as err:
                print(f"make_data: {name}: {err}", file=sys.stderr)
                return 3
        print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
