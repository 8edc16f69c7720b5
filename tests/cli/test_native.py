"""`spark13b native build` with a compiler and without one; what is built is used, and told."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from spark13b.cli.main import run
from spark13b.doctor import installation
from spark13b.native.build import cache_folder, find_compiler, library_name, source_folder
from spark13b.native.library import find_library

PLACES = (folder / library_name() for folder in (source_folder(), cache_folder()))
COMPILED = next((path for path in PLACES if path.is_file()), None)


def test_what_is_built_is_found_and_doctor_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    made = "for target; do :; done\n"  # copies this source's library where there is one: compiling takes a minute
    made += f'exec cp {shlex.quote(str(COMPILED))} "$target"' if COMPILED else f'exec {shlex.join(compiler)} "$@"'
    hasty = tmp_path / "hasty"
    hasty.write_text(f"#!/bin/bash\n{made}\n")
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


def test_an_unknown_set_of_instructions_is_refused_by_what_computes_and_told_by_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPARK13B_NATIVE", "avx3")
    assert run(["train", "--preset", "cpu-tiny-pretrain", "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert "SPARK13B_NATIVE=avx3 is neither 0 nor one of baseline, avx2, avx512, amx, amx-float32" in message
    assert "at: the environment variable SPARK13B_NATIVE" in message
    (finding,) = installation.native()
    assert finding.state == "fail"
    assert finding.found in message
    assert finding.fix in message


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


@pytest.mark.parametrize("cache", ["a file", "/proc"])
def test_a_cache_that_cannot_be_written_to_is_named_and_no_compiler_advised(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
    monkeypatch.setenv("CXX", "true")  # a compiler that ends well and makes nothing
    assert run(["native", "build"]) == 1
    message = capsys.readouterr().err
    assert f"the native library was not built: cannot write to {tmp_path / cache}/spark13b/native: " in message
    assert "fix: let it be written to, or name another cache in XDG_CACHE_HOME for good" in message
    assert "g++" not in message


def test_a_compiler_that_does_not_start_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = tmp_path / "empty"
    compiler.touch(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(compiler))
    assert run(["native", "build"]) == 1
    message = capsys.readouterr().err
    assert f"the native library was not built: {compiler} does not start: " in message
    assert "fix: install g++ or clang++, or name one in CXX" in message
