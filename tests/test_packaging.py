"""The built wheel, installed alone into an empty folder: all of the package, nothing else, and it works there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_string
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
INSTALLED_AS = {
    "mmsa_decalign": "mmsa_decalign",
    "reference": "mmsa_decalign/reference",
    "configs": "mmsa_decalign/configs",
}
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "venv")


def run(*command: str | Path, **options: Any) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def has_build_back_end() -> bool:
    """Whether the setuptools at hand is one that pyproject.toml accepts; else pip must fetch it."""
    try:
        return int(metadata.version("setuptools").split(".")[0]) >= 77
    except metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: leftovers of an earlier build in the checkout cannot hide a missing file."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCE)
    options = ["--no-build-isolation"] if has_build_back_end() else []
    run(sys.executable, "-m", "pip", "wheel", folder / "source", "--no-deps", "--wheel-dir", folder, *options)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel installs, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def in_isolation(installed: Path, code: str, cwd: Path) -> Any:
    """The JSON that `code` prints where the installed wheel comes first and the checkout is out of reach.

    -S keeps Python from reading site-packages' .pth files, through which an editable install would reach the checkout;
    the dependencies come from site-packages as plain folders.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    folders = dict.fromkeys([str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    environment |= {"PYTHONPATH": os.pathsep.join(folders), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-S", "-P"] if sys.version_info >= (3, 11) else [sys.executable, "-S"]
    return json.loads(run(*command, "-c", code, env=environment, cwd=cwd).splitlines()[-1])


def description_of(wheel: Path) -> tuple[list[str], Message]:
    """Names of the files in a wheel, and its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (record,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        return names, message_from_string(archive.read(record).decode("utf-8"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path):
    expected = {
        f"{target}/{path.relative_to(ROOT / source).as_posix()}"
        for source, target in INSTALLED_AS.items()
        for path in (ROOT / source).rglob("*")
        if path.suffix in (".py", ".json", ".typed", ".html", ".css", ".js")
    }
    names, _ = description_of(wheel)
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "mmsa_decalign/configs/decalign.json" in expected
    assert len(expected) > 30


def test_the_metadata_has_readme_licence_and_dependencies(wheel: Path):
    names, about = description_of(wheel)
    (licence,) = [name for name in names if name.endswith("/LICENSE")]
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(licence).decode("utf-8") == (ROOT / "LICENSE").read_text("utf-8")
    assert "MIT License" in (ROOT / "LICENSE").read_text("utf-8")
    assert about["License-File"] == "LICENSE"
    assert (about["License-Expression"] or about["License"]) == "MIT"
    assert about["Description-Content-Type"] == "text/markdown"
    assert about.get_payload().strip() == (ROOT / "README.md").read_text("utf-8").strip()
    assert about["Requires-Python"] == ">=3.10"
    needed = [line for line in about.get_all("Requires-Dist") if "extra" not in line]
    for name in ("torch", "numpy", "scipy", "POT", "easydict", "gdown", "MMSA==2.2.1", "transformers", "rich"):
        assert any(line.startswith(name) for line in needed), name


USE = """
import json
from importlib import metadata, resources
import mmsa_decalign
from mmsa_decalign import ops, reference

found = {}
for point in metadata.entry_points(group="mmsa.models"):
    found[point.name] = type(point.load()).__name__
(command,) = metadata.entry_points(group="console_scripts", name="mmsa")
import torch
print(json.dumps({
    "files": [module.__file__ for module in (mmsa_decalign, ops, reference)],
    "reference": float(reference.mmd([[0.0]], [[1.0]], bandwidth=1.0)),
    "operators": ops.mmd(torch.zeros(1, 1).double(), torch.ones(1, 1).double(), bandwidth=1.0).item(),
    "config": json.loads(resources.files("mmsa_decalign.configs").joinpath("decalign.json").read_text("utf-8")),
    "models": found,
    "command": command.load().__module__,
    "distribution": str(metadata.distribution("mmsa-decalign").locate_file("")),
}))
"""


def test_the_installed_wheel_works_without_the_checkout(installed: Path, tmp_path: Path):
    answer = in_isolation(installed, USE, tmp_path)
    for file in [*answer["files"], answer["distribution"]]:
        assert Path(file).resolve().is_relative_to(installed.resolve()), f"{file} shadows the wheel"
    exactly = 0.7869386805747332  # 2 - 2 exp(-1/2)
    assert answer["reference"] == pytest.approx(exactly, rel=1e-12)
    assert answer["operators"] == pytest.approx(exactly, rel=1e-12)
    assert answer["config"] == json.loads((ROOT / "configs" / "decalign.json").read_text("utf-8"))
    assert answer["models"]["decalign"] == "ModelPlugin"
    assert answer["command"] == "mmsa_decalign.cli"


def test_a_missing_module_is_not_taken_from_the_checkout(installed: Path, tmp_path: Path):
    """The isolation above is real: with the reference taken out of the folder, it is nowhere."""
    broken = tmp_path / "broken"
    shutil.copytree(installed, broken)
    shutil.rmtree(broken / "mmsa_decalign" / "reference")
    code = "import json; from importlib.util import find_spec as find; print(json.dumps(bool(find('{}'))))"
    code = code.format("mmsa_decalign.reference")
    assert in_isolation(installed, code, tmp_path) is True
    assert in_isolation(broken, code, tmp_path) is False


def test_the_console_script_is_installed(installed: Path):
    scripts = [path.stem for path in installed.rglob("*") if path.parent.name in ("bin", "Scripts")]
    assert "mmsa" in scripts
