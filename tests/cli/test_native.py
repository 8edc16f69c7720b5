"""`spark13b native build` by a real compiler and without one; what is built is used, and told."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from spark13b.cli.main import run
from spark13b.doctor import installation
from spark13b.native.build import find_compiler, library_name
from spark13b.native.library import find_library


def test_what_is_built_is_found_and_doctor_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    hasty = tmp_path / "hasty"  # the same compiler, which optimizes nothing: a third of the time
    hasty.write_text(f'#!/bin/bash\nexec {shlex.join(compiler)} "${{@/-O3/-O0}}"\n')
    hasty.chmod(0o755)
    monkeypatch.setenv("CXX", str(hasty))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SPARK13B_NATIVE", raising=False)
    assert run(["native", "build", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert Path(told["library"]) == tmp_path / "spark13b" / "native" / library_name()
    library = find_library().library
    assert library is not None
    (finding,) = installation.native()
    assert finding.state == "ok"
    assert library.describe() in finding.found
    monkeypatch.setenv("SPARK13B_NATIVE", "0")
    (finding,) = installation.native()
    assert finding.state == "missing"
    assert "SPARK13B_NATIVE=0 switches it off" in finding.found


def test_without_a_compiler_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert run(["native", "build"]) == 1
    message = capsys.readouterr().err
    assert "the native library was not built: there is no C++ compiler" in message
    assert "fix: install g++ or clang++" in message
    assert list(tmp_path.iterdir()) == []
