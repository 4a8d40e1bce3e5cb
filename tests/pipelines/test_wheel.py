"""What a wheel holds, and that the command line starts from it beside packages of the same names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("vsr1_core", "assets", "pipelines", "setup.py", "pyproject.toml", "README.md", "LICENSE")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("setuptools") is None, reason="a wheel is built with the setuptools that is here"),
]


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("VSR1_", "PYTHONPATH"))}
    environ |= {"PYTHONPATH": str(path)} if path else {}
    return subprocess.run(list(map(str, command)), cwd=cwd, env=environ, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        source, target = ROOT / name, folder / "source" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", folder)
    built = run(sys.executable, "-m", "pip", "wheel", ".", *options, cwd=folder / "source")
    if "No module named pip" in built.stderr:
        pytest.skip("there is no pip here to build a wheel with")
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """The wheel as it is installed, beside another project's `assets` and `pipelines`."""
    folder = wheel.parent / "site"
    zipfile.ZipFile(wheel).extractall(folder)
    for name in ("assets", "pipelines"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('of another project')\n")
    return folder


def test_a_wheel_adds_one_package_with_all_files(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    places = {name.split("/")[0] for name in names}
    assert {place for place in places if not place.endswith(".dist-info")} == {"vsr1_core"}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vsr1_core").rglob("*.py")}
    for part in ("assets", "pipelines"):
        expected |= {f"vsr1_core/_app/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / part).rglob("*.py")}
    data = {"vsr1_core/py.typed", "vsr1_core/_app/pipelines/dagster.yaml"}
    data |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "vsr1_core/serve/page").iterdir()}
    assert {name for name in names if ".dist-info" not in name} >= expected | data


def test_the_command_is_the_one_that_finds_its_own_packages(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    name = next(name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert "vsr1 = vsr1_core.__main__:main" in archive.read(name).decode()


def test_the_command_line_starts_from_a_wheel_beside_packages_of_the_same_names(site: Path, tmp_path: Path) -> None:
    shown = run(sys.executable, "-m", "vsr1_core", "--help", cwd=tmp_path, path=site)
    assert shown.returncode == 0, shown.stderr
    assert "vsr1 build --dataset toy" in shown.stdout
    code = (
        "from vsr1_core.__main__ import use_application as u; u(); import pipelines.definitions as d; print(d.__file__)"
    )
    found = run(sys.executable, "-c", code, cwd=tmp_path, path=site)
    assert Path(found.stdout.strip()) == site / "vsr1_core/_app/pipelines/definitions.py", found.stderr


def test_a_process_that_holds_others_of_the_same_names_is_told(site: Path, tmp_path: Path) -> None:
    code = (
        "import sys, types, importlib.machinery as m\n"
        "other = types.ModuleType('assets'); other.__spec__ = m.ModuleSpec('assets', None, origin='/other/assets.py')\n"
        "sys.modules['assets'] = other\n"
        "from vsr1_core.__main__ import main; main()"
    )
    refused = run(sys.executable, "-c", code, cwd=tmp_path, path=site)
    assert refused.returncode != 0
    assert "Python found /other/assets.py; start vsr1 in a process of its own" in refused.stderr
