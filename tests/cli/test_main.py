"""The command line itself: fast help, lazy modules, and errors as one message with an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from processor_time import takes_less

from spark13b import __version__
from spark13b.cli.app import COMMANDS

ENVIRONMENT = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spark13b", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)


PAGES = [[], *([name] for name in COMMANDS)]


@pytest.fixture(scope="module")
def shown() -> dict[str, tuple[str, list[str], int]]:
    """Words -> what `spark13b WORDS --help` shows, the heavy modules that are loaded then, how it ended."""
    code = f"""
import io, json, sys
from contextlib import redirect_stdout
from spark13b.cli.main import run
found = {{}}
for words in {PAGES}:
    with redirect_stdout(io.StringIO()) as page:
        status = run([*words, "--help"])
    heavy = [name for name in ("mindspore", "torch", "matplotlib") if name in sys.modules]
    found[" ".join(words)] = page.getvalue(), heavy, status
print(json.dumps(found))
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    pages: dict[str, tuple[str, list[str], int]] = json.loads(result.stdout)
    return pages


@pytest.mark.parametrize("arguments", PAGES, ids=lambda words: " ".join(words) or "root")
def test_a_help_page_has_an_example_and_never_loads_mindspore(arguments, shown):
    page, heavy, status = shown[" ".join(arguments)]
    assert (heavy, status) == ([], 0)
    assert "Example:" in page


def test_ctrl_c_while_modules_are_imported_shows_no_traceback(tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    command = [sys.executable, "-m", "spark13b", "preset", "list"]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: stopped before the end (Ctrl-C)\n"


def test_help_takes_less_than_one_and_a_half_times_the_import_of_its_libraries(tmp_path):
    """`typer.rich_utils`, which draws help pages, alone takes more than twice the time of typer and rich."""
    libraries = ["-c", "import typer, rich, typer.rich_utils"]
    assert takes_less(["-m", "spark13b", "--help"], 1.5, libraries, tmp_path)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_closed_standard_stream_is_no_error(number):
    command = [sys.executable, "-m", "spark13b", "preset", "list", "--json"]
    closes = f'exec "$@" {number}>&-'
    result = subprocess.run(["sh", "-c", closes, "sh", *command], capture_output=True, text=True, env=ENVIRONMENT)
    assert (result.returncode, result.stderr) == (0, "")
    assert number == 1 or json.loads(result.stdout)


def test_letters_that_the_terminal_lacks_are_shown_by_number():
    result = subprocess.run(
        [sys.executable, "-c", "import sys; from spark13b.cli.main import run; run(['--version']); print('你')"],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
    )
    assert result.stdout == f"spark13b {__version__}\n\\u4f60\n"


def test_what_other_tools_call_a_command_leads_to_one_that_there_is(shown):
    from spark13b.cli.app import _ELSEWHERE

    for words in _ELSEWHERE.values():
        command, _, sub = words.partition(" ")
        assert command in COMMANDS or command in ("--help", "--version")
        assert not sub or f" {sub} " in shown[command][0]


def test_a_misspelt_device_is_refused_and_capitals_are_not(monkeypatch):
    from spark13b.errors import InputError
    from spark13b.model.device import surely_cpu

    monkeypatch.setenv("SPARK13B_DEVICE", "CPU")
    assert surely_cpu()
    monkeypatch.setenv("SPARK13B_DEVICE", "gpu")
    with pytest.raises(InputError, match="SPARK13B_DEVICE=gpu is not cpu"):
        surely_cpu()


def test_the_version_goes_to_stdout():
    result = process("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"spark13b {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "did you mean 'train'?"),
        (["quantize"], "did you mean 'ckpt quantize'?"),
        (["generate"], "did you mean 'infer'?"),
        (["train", "--prset", "x"], "No such option: --prset"),
        (["train"], "no preset was given"),
        (["train", "--preset", "cpu-tiny-sft"], "no training rows were given"),
        (["train", "--preset", "cpu-tiny-stf", "--data", "x"], "cpu-tiny-sft"),
        (["train", "--preset", "cpu-tiny-sft", "--data", "none.mindrecord"], "none.mindrecord"),
        (["train", "--preset", "cpu-tiny-sft", "--data", "x", "--set", "model.sequence_length=9"], "seq_length"),
        (["infer", "x", "--load", "nowhere"], "nowhere"),
        (["infer", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_message_with_a_cure_on_stderr_and_exit_code_2(
    arguments, says, tmp_path, monkeypatch, spark13b
):
    monkeypatch.chdir(tmp_path)
    result = spark13b(*arguments, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("error:") == 1
    assert "  fix: " in result.stderr
    assert says in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback_before_the_message():
    result = process("--debug", "train")
    assert "Traceback" in result.stderr
    assert "error: no preset was given" in result.stderr


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m spark13b preset list | head -n 1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=ENVIRONMENT)
    assert (result.returncode, result.stderr) == (0, "")


def test_an_error_of_the_operating_system_names_the_file(monkeypatch, capsys):
    from spark13b.cli import main

    def broken() -> None:
        raise OSError(28, "No space left on device", "/some/file")

    monkeypatch.setattr(main, "build_app", lambda: lambda *args, **kwargs: broken())
    assert main.run([]) == 1
    error = capsys.readouterr().err
    assert "No space left" in error
    assert "/some/file" in error
    assert "free some space" in error


def test_a_second_assignment_without_its_option_is_told_to_have_one(capsys):
    from spark13b.cli.main import run

    assert run(["preset", "check", "cpu-tiny-sft", "--set", "train.steps=9", "train.seed=3"]) == 2
    assert "fix: write --set before each KEY=VALUE" in capsys.readouterr().err
    assert run(["preset", "check", "cpu-tiny-sft", "train"]) == 2
    assert "fix: see 'spark13b preset check --help'" in capsys.readouterr().err


def test_an_unexpected_error_is_short_and_tells_how_to_see_more(monkeypatch, capsys):
    from spark13b.cli import main

    monkeypatch.delenv("SPARK13B_DEBUG", raising=False)
    monkeypatch.setattr(main, "build_app", lambda: lambda *args, **kwargs: {}["missing"])
    assert main.run([]) == 1
    error = capsys.readouterr().err
    assert "unexpected KeyError" in error
    assert "--debug" in error
    assert "Traceback" not in error
