"""The wheel holds all that a user needs, and works from another folder without the source tree."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from spark13b.native.build import cache_folder, find_compiler, library_name, source_folder

ROOT = Path(__file__).parents[1]
PLACES = (folder / library_name() for folder in (source_folder(), cache_folder()))
COMPILED = next((path for path in PLACES if path.is_file()), None)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The built wheel, unpacked: what `pip install` puts into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    environment = dict(os.environ)
    if find_compiler() is not None and COMPILED is not None:  # half a minute less: what "compiles" copies the library
        compiler = folder / "compiler"
        compiler.write_text(f'#!/bin/sh\nfor target; do :; done\nexec cp {shlex.quote(str(COMPILED))} "$target"\n')
        compiler.chmod(0o755)
        environment["CXX"] = str(compiler)
    subprocess.run(build, cwd=ROOT, env=environment, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(unpacked: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -S -I would lose the dependencies: the path of the wheel comes before the editable install's
    env = {**os.environ, "PYTHONPATH": str(unpacked), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "spark13b", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def test_the_wheel_has_the_presets_and_runs_from_another_folder(unpacked, tmp_path):
    listed = run(unpacked, tmp_path, "preset", "list")
    assert listed.returncode == 0, listed.stderr
    assert "800T-A2-sft" in listed.stdout
    shown = run(unpacked, tmp_path, "preset", "show", "cpu-tiny-sft", "--resolved")
    assert "hidden_size: 128" in shown.stdout
    where = subprocess.run(
        [sys.executable, "-c", "import spark13b.config as c; print(c.preset_folder())"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
    )
    assert where.stdout.strip() == str(unpacked / "spark13b" / "presets")
    assert (unpacked / "spark13b" / "serve" / "page" / "index.html").is_file()


@pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")
def test_the_wheel_has_the_native_library_of_its_source(unpacked):
    (library,) = (unpacked / "spark13b" / "native").glob("libspark13b-*.so")
    assert library.name == library_name()
    assert library.stat().st_size > 100_000


def test_every_module_of_the_source_is_in_the_wheel_and_the_command_is_registered(unpacked):
    source = {path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*.py")}
    packed = {path.relative_to(unpacked) for path in unpacked.rglob("*.py")}
    assert source <= packed
    (entry_points,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "spark13b = spark13b.__main__:main" in entry_points.read_text()


def test_every_installed_version_is_pinned():
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    wanted = subprocess.run(
        [sys.executable, "-c", "import importlib.metadata as m; print(*m.requires('spark13b'), sep='\\n')"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    names = {
        re.split(r"[\s<>=~!;\[]", line)[0].lower().replace("_", "-")
        for line in wanted
        if "extra == 'bench'" not in line and "extra == 'mindformers'" not in line
    }
    assert names <= pinned
