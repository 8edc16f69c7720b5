"""`spark13b preset` as a user meets it: exit codes, stdout for results and stderr for the rest."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from in_process import Run, Said
from processor_time import takes_less

from spark13b.config import load_preset, preset_names

SUBCOMMANDS = ("list", "show", "check", "diff", "import")
ORIGINAL = """\
run_mode: train
parallel_config: {data_parallel: 2, model_parallel: 4}
context: {max_device_memory: 58GB, mode: 0}
model:
  model_config:
    type: IFlytekSparkConfig
    compute_type: bfloat16
    softmax_compute_type: bfloat16
    seq_lenght: 16384
"""


@pytest.fixture
def run(spark13b: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `spark13b preset ARGUMENTS` in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments: str, columns: int = 200) -> Said:
        monkeypatch.setenv("COLUMNS", str(columns))
        return spark13b("preset", *arguments, code=None)

    return call


@pytest.fixture
def output(run: Run) -> Callable[..., str]:
    """stdout of a command that must succeed and say nothing else."""

    def call(*arguments: str, columns: int = 200) -> str:
        result = run(*arguments, columns=columns)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    return call


def test_list_has_a_line_a_preset_and_json_the_same(output: Callable[..., str]) -> None:
    lines = output("list").splitlines()
    assert [line.split()[0] for line in lines] == preset_names()
    entries = json.loads(output("list", "--json"))
    assert [f"{entry['name']:18}  {entry['description']}" for entry in entries] == lines


def test_show_prints_the_file_and_resolved_everything_and_check_accepts_both(
    output: Callable[..., str], tmp_path: Path
) -> None:
    own = output("show", "800T-A2-persona")
    assert yaml.safe_load(own)["extends"] == "800T-A2-sft"
    resolved = output("show", "800T-A2-persona", "--resolved")
    assert yaml.safe_load(resolved) == load_preset("800T-A2-persona").model_dump()
    for name, text in (("own.yaml", own), ("resolved.yaml", resolved)):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert output("check", name) == (
            f"{name}: fine. sft on Atlas 800T A2, devices 8 (data_parallel 2 x model_parallel 4)\n"
        )
    assert output("diff", "own.yaml", "resolved.yaml") == "no difference\n"


def test_show_json_is_the_same_as_the_yaml(output: Callable[..., str]) -> None:
    for options in ((), ("--resolved",)):
        text = output("show", "cpu-tiny-sft", *options)
        assert json.loads(output("show", "cpu-tiny-sft", *options, "--json")) == yaml.safe_load(text)


def test_set_reaches_show_check_and_diff(run: Run, output: Callable[..., str]) -> None:
    change = ("--set", "train.seed=7")
    resolved = output("show", "cpu-tiny-sft", "--resolved", *change)
    assert yaml.safe_load(resolved)["train"]["seed"] == 7
    assert run("check", "cpu-tiny-sft", "--set", "train.seed=x").returncode == 2
    assert output("diff", "cpu-tiny-sft", "cpu-tiny-sft", *change).splitlines()[1].split() == [
        *("train.seed", "0", "7")
    ]
    refused = run("show", "cpu-tiny-sft", *change)
    assert refused.returncode == 2 and "add --resolved" in refused.stderr


def test_check_tells_notes_and_the_same_as_json(output: Callable[..., str]) -> None:
    change = ("--set", "model.sparse_local_size=1024")
    _, note = output("check", "cpu-tiny-sft", *change).splitlines()
    assert note.startswith("note: model.sparse_local_size 1024 is beyond seq_length 512")
    found = json.loads(output("check", "cpu-tiny-sft", *change, "--json"))
    assert found == {
        "preset": "cpu-tiny-sft",
        "task": "sft",
        "devices": 1,
        "notes": [note.removeprefix("note: ")],
    }


def test_diff_is_aligned_and_stacked_where_the_terminal_is_narrow(output: Callable[..., str]) -> None:
    wide = output("diff", "800T-A2-sft", "800T-A2-persona").splitlines()
    assert wide[0].split() == ["800T-A2-sft", "800T-A2-persona"]
    assert wide[1].split() == ["model.seq_length", "32768", "8192"]
    assert wide[3].split() == ["schedule.total_steps", "300000", "null"]
    assert len({line.index(line.split()[-1]) for line in wide[1:]}) == 1
    narrow = output("diff", "800T-A2-sft", "800T-A2-persona", columns=40).splitlines()
    assert narrow[:3] == ["model.seq_length", "  800T-A2-sft: 32768", "  800T-A2-persona: 8192"]
    assert max(map(len, narrow)) <= 40
    entries = json.loads(output("diff", "800T-A2-sft", "800T-A2-persona", "--json"))
    assert entries[0] == {"key": "model.seq_length", "a": 32768, "b": 8192}


def test_import_writes_a_preset_and_tells_the_rest_on_stderr(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(ORIGINAL, encoding="utf-8")
    arguments = ("import", "run.yaml", "--output", "new.yaml", "--set", "schedule.lr=1e-4")
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (0, "")
    assert "context.mode: spark13b decides this itself\n" in result.stderr
    assert "model.model_config.seq_lenght: not known; did you mean 'model.model_config.seq_length'?\n" in result.stderr
    assert result.stderr.endswith("wrote new.yaml: pretrain on Atlas 800T A2\n")
    assert load_preset(tmp_path / "new.yaml").schedule.lr == 1e-4
    again = run(*arguments)
    assert again.returncode == 2 and "already exists" in again.stderr
    assert run(*arguments, "--force").returncode == 0


def test_a_refused_import_writes_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(ORIGINAL.replace("model_parallel: 4", "model_parallel: 3"), encoding="utf-8")
    result = run("import", "run.yaml", "-o", "new.yaml")
    assert result.returncode == 2
    assert "error: 2 values of the preset are wrong" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("show", "800-sftt"),
            "error: there is no preset '800-sftt'\n"
            "  fix: did you mean '800-sft'? see 'spark13b preset list', or give the path of a .yaml file\n",
        ),
        (
            ("check", "800-sft", "--set", "model.seq_lenght=4096"),
            "error: model.seq_lenght: not a known key\n"
            "  at: --set model.seq_lenght=4096\n"
            "  fix: did you mean 'model.seq_length'?\n",
        ),
        (
            ("check", "bad.yaml"),
            "error: broken YAML: did not find expected ',' or ']'\n"
            "  at: bad.yaml:3\n"
            "  fix: check the indentation, colons and quotes there\n",
        ),
        (
            ("check", "type.yaml"),
            "error: train.seed: expected a whole number, got the text 'seven'\n"
            "  at: type.yaml:3\n"
            "  fix: write a whole number, e.g. 0\n",
        ),
    ],
)
def test_an_error_is_one_message_on_stderr_with_exit_code_2(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "bad.yaml").write_text("task: sft\nmodel: [1\ntrain: 2\n", encoding="utf-8")
    (tmp_path / "type.yaml").write_text("extends: cpu-tiny-sft\ntrain:\n  seed: seven\n", encoding="utf-8")
    result = run(*arguments)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", message)


@pytest.mark.parametrize("arguments", [("list",), ("show", "800-sft", "--resolved"), ("check", "800-sft")])
def test_no_preset_command_loads_mindspore_and_list_needs_no_schema(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    script = (
        "import sys; from spark13b.cli.main import run; code = run(['preset', *sys.argv[1:]]); "
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0
    loaded = set(result.stderr.split())
    assert "spark13b.cli.preset" in loaded
    assert not {"mindspore", "numpy"} & loaded
    if arguments == ("list",):
        assert not {"yaml", "spark13b.config.preset", "spark13b.config.model"} & loaded


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_every_help_page_ends_with_an_example(output: Callable[..., str], subcommand: str) -> None:
    text = " ".join(output(subcommand, "--help").split())
    assert f"Example: spark13b preset {subcommand}" in text
    assert not text.rpartition("Example:")[2].count("--help")


def test_the_groups_help_page_names_every_command(output: Callable[..., str]) -> None:
    text = output("--help")
    assert all(subcommand in text for subcommand in SUBCOMMANDS)
    assert "--install-completion" not in text


def test_list_takes_less_than_two_and_a_half_times_the_import_of_typer_and_rich(tmp_path: Path) -> None:
    assert takes_less(["-m", "spark13b", "preset", "list"], 2.5, ["-c", "import typer, rich"], tmp_path)


def test_every_command_of_the_page_prints_what_the_page_shows(run: Run, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "presets.md").read_text(encoding="utf-8")
    for name, body in re.findall(r"```yaml\n# (\S+)\n(.*?)```", text, re.DOTALL):
        (tmp_path / name).write_text(body, encoding="utf-8")
    shown = "".join(re.findall(r"```console\n(.*?)```", text, re.DOTALL))
    commands = re.findall(r"^\$ spark13b preset (.*)\n((?:(?!\$ ).*\n)*)", shown, re.MULTILINE)
    assert len(commands) == shown.count("$ ") == 7
    for command, expected in commands:
        result = run(*command.split(), columns=80)
        assert result.stdout + result.stderr == expected, command


@pytest.mark.parametrize("page", ["presets.md", "presets.zh-CN.md"])
def test_the_page_names_every_key_in_the_table_of_its_section(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    for section, keys in load_preset("cpu-tiny-sft").model_dump().items():
        if isinstance(keys, dict):
            table = text.partition(f"\n| `{section}` |")[2].partition("\n\n")[0]
            cells = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
            assert cells == set(keys)
