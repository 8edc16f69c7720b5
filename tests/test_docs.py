"""README and docs: links, both languages, the commands they show, and the import rules that architecture.md states.

docs/presets.md, data.md and checkpoints.md are run by the tests of their commands in tests/cli.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from spark13b.cli.app import build_app
from spark13b.config import load_preset, preset_names

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "spark13b"
CHINESE = sorted([*ROOT.glob("*.zh-CN.md"), *ROOT.glob("docs/*.zh-CN.md")])
ENGLISH = [page.with_name(page.name.replace(".zh-CN", "")) for page in CHINESE]
PAGES = [*ENGLISH, *CHINESE, ROOT / "CONTRIBUTING.md"]
LIGHT = {"preset", "tokenizer", "preprocess"}  # commands that the README's test runs; `train --dry-run` is one more
ORIGINAL_YAML = """\
run_mode: finetune
parallel_config: {data_parallel: 2, model_parallel: 4}
context: {max_device_memory: 58GB}
model:
  model_config: {compute_type: bfloat16, softmax_compute_type: bfloat16}
"""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def shell_lines(page: Path) -> list[str]:
    """The command lines of a page in order: `sh` blocks, `$ ` lines of `console` blocks, and indented ones."""
    text = page.read_text(encoding="utf-8")
    lines = []
    for fenced, indented in re.findall(r"^```(.*?)^```$|^ {4}(\S[^\n]*)$", text, re.DOTALL | re.MULTILINE):
        language, _, body = fenced.partition("\n")
        if language == "sh":
            lines += [line for line in body.splitlines() if line.strip() and not line.startswith("#")]
        elif language == "console":
            lines += [line.removeprefix("$ ") for line in body.splitlines() if line.startswith("$ ")]
        elif indented:
            lines.append(indented)
    return lines


def spark_calls(line: str) -> Iterator[list[str]]:
    """The arguments of each `spark13b` in a shell line with pipes and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in [*lexer, "|"]:
        if word in ("|", ">"):
            if words[:1] == ["spark13b"]:
                yield words[1:]
            words = []
        else:
            words.append(word)


def command_of(words: list[str]) -> tuple[Any, Any, list[str]]:
    """The root command, the command that `words` lead to, and the words behind its name."""
    root = command = build_app()
    for used, word in enumerate(words):
        found = command.get_command(None, word) if hasattr(command, "get_command") else None
        if found is None:
            return root, command, words[used:]
        command = found
    return root, command, []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_points_to_a_file_and_to_a_heading_in_it(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]
    assert links or page.name == "CONTRIBUTING.md"
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(target), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


@pytest.mark.parametrize(("english", "chinese"), zip(ENGLISH, CHINESE, strict=True), ids=name_of)
def test_both_languages_show_the_same_commands_and_code(english: Path, chinese: Path) -> None:
    assert shell_lines(english) == shell_lines(chinese)
    assert [language for language, _ in blocks(english)] == [language for language, _ in blocks(chinese)]
    for (language, ours), (_, theirs) in zip(blocks(english), blocks(chinese), strict=True):
        if language == "python":
            assert ast.dump(ast.parse(ours)) == ast.dump(ast.parse(theirs))
        if language in ("console", "text"):  # so that what tests run of the English page holds for the Chinese one
            assert ours == theirs
        if language == "yaml":
            assert yaml.safe_load(ours) == yaml.safe_load(theirs)
    assert english.name in re.findall(r"\]\(([^)]+)\)", prose(chinese))
    assert chinese.name in re.findall(r"\]\(([^)]+)\)", prose(english))


@pytest.mark.parametrize("page", ENGLISH, ids=name_of)
def test_every_command_line_of_a_page_parses(page: Path) -> None:
    for line in shell_lines(page):
        for words in spark_calls(line):
            root, command, _ = command_of(words)
            assert command is not root and not hasattr(command, "get_command"), line
            called: list[dict[str, Any]] = []
            command.callback = lambda called=called, **values: called.append(values)
            try:
                root(list(words), prog_name="spark13b", standalone_mode=False)
            except Exception as error:
                pytest.fail(f"{name_of(page)}: {line}\n{error}")
            assert len(called) == 1, line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_named_in_the_text_exists_with_its_options(page: Path) -> None:
    for span in re.findall(r"`(spark13b [^`]+)`", prose(page)):
        root, command, rest = command_of(span.split()[1:])
        known = {option for one in (root, command) for param in one.params for option in param.opts}
        known |= {"--help", "-h"}
        assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= known, span
        if rest and hasattr(command, "get_command") and not rest[0].startswith("-"):
            assert rest[0].isupper(), span  # COMMAND and the like; else it would be a command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)) <= targets


def spark(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}
    line = [sys.executable, "-m", "spark13b", *words]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")


def test_the_light_commands_of_the_readme_run_and_print_what_it_shows(tmp_path: Path) -> None:
    (tmp_path / "run_old.yaml").write_text(ORIGINAL_YAML, encoding="utf-8")
    ran: dict[str, str] = {}
    for language, text in blocks(ROOT / "README.md"):
        if language == "console":
            for line, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                words = line.split()
                if words[0] == "cat":
                    (tmp_path / words[1]).write_text(expected, encoding="utf-8")
                else:
                    assert words[0] == "spark13b", line
                    result = spark(words[1:], tmp_path)
                    assert (result.returncode, result.stdout) == (0, expected), result.stderr
                    ran[" ".join(words[1:])] = result.stdout
        elif language == "sh":
            for words in (words for line in text.splitlines() for words in spark_calls(line) if words[0] in LIGHT):
                result = spark(words, tmp_path)
                assert result.returncode == 0, (words, result.stderr)
                ran[" ".join(words)] = result.stdout
    assert len(ran) >= 10
    assert [line.split()[0] for line in ran["preset list"].splitlines()] == preset_names()
    assert yaml.safe_load(ran["preset show 800T-A2-sft --resolved"]) == load_preset("800T-A2-sft").model_dump()
    assert ran["preset check my-sft.yaml --set train.epochs=3"].startswith("my-sft.yaml: fine. sft on Atlas 800T A2")


def test_the_python_example_of_the_readme_prints_what_it_shows(tmp_path: Path) -> None:
    shown = [text for language, text in blocks(ROOT / "README.md") if language in ("python", "text")]
    script, expected = shown
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, expected), result.stderr


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_table_of_presets_says_what_they_are(name: str) -> None:
    expected = []
    for preset_name in preset_names():
        preset = load_preset(preset_name)
        parallel = preset.parallel
        split = f"{preset.machine.devices} ({parallel.data_parallel} x {parallel.model_parallel})"
        cells = [f"`{preset_name}`", preset.task, preset.machine.name, split]
        expected.append([*cells, preset.model.compute_type, str(preset.model.seq_length)])
    shown = [row for row in table(ROOT / name, 6) if row[0].startswith("`")]
    assert shown == expected


@pytest.mark.parametrize("name", ["benchmarks.md", "benchmarks.zh-CN.md"])
def test_every_benchmark_script_is_named_on_the_page(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    scripts = {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")}
    assert set(re.findall(r"benchmarks/\w+\.py", text)) == scripts


def table(page: Path, columns: int) -> list[list[str]]:
    """The rows of a page's tables of so many columns."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in prose(page).splitlines() if line[:1] == "|"
    ]
    return [row for row in rows if len(row) == columns]


def allowed_imports(page: str) -> dict[str, set[str]]:
    """Room -> rooms it may import, by the table of docs/architecture.md."""
    rows = [row for row in table(ROOT / "docs" / page, 3) if "may import" in row[2] or "可以导入" in row[2]]
    assert len(rows) == 1
    rules: dict[str, set[str]] = {}
    for rooms, _, targets in table(ROOT / "docs" / page, 3):
        for room in re.findall(r"`(\w+)`", rooms):
            if (SOURCE / room).is_dir():
                rules[room] = set(re.findall(r"`(\w+)`", targets))
    return rules


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def imports(path: Path) -> Iterator[tuple[str, ast.AST, bool]]:
    """(module, node, whether it is inside a function) of every import of a file."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, ast.AST, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, child, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{place(path, child)}: a relative import"
                assert child.module is not None
                if child.module == "spark13b":
                    yield from ((f"spark13b.{alias.name}", child, inside) for alias in child.names)
                else:
                    yield child.module, child, inside
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, inside or function)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def test_imports_follow_the_table_of_the_architecture_page() -> None:
    rules = allowed_imports("architecture.md")
    assert rules == allowed_imports("architecture.zh-CN.md")
    assert rules.keys() == {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    floor = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    wrong = []
    for path in modules():
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        allowed = floor | rules.get(room, set()) | {room, "__version__"}
        for module, node, _ in imports(path):
            if module.startswith("spark13b.") and module.split(".")[1] not in allowed:
                wrong.append(f"{place(path, node)}: {room} imports {module}")
    assert not wrong


def test_the_rooms_do_not_import_in_a_circle() -> None:
    rules = allowed_imports("architecture.md")
    while rules:
        lowest = {room for room, targets in rules.items() if not targets & rules.keys()}
        assert lowest, f"a circle among {sorted(rules)}"
        rules = {room: targets for room, targets in rules.items() if room not in lowest}


def test_only_the_command_line_knows_typer_and_rich_and_prints() -> None:
    wrong = []
    for path in modules():
        wrong += [f"{place(path, node)}: click" for module, node, _ in imports(path) if module.split(".")[0] == "click"]
        if path.is_relative_to(SOURCE / "cli"):
            continue
        wrong += [
            f"{place(path, node)}: {module}"
            for module, node, _ in imports(path)
            if module.split(".")[0] in ("typer", "rich")
        ]
        wrong += [
            f"{place(path, node)}: print"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
    assert not wrong


def test_mindspore_is_imported_only_where_the_architecture_page_says() -> None:
    free = ("model", "train", "infer")  # elsewhere inside functions, in the files that the page names
    page = " ".join((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split())
    sentence = re.search(r"mindspore is imported by .*?by nothing else", page)
    assert sentence
    rooms, _, files = sentence[0].partition(";")
    assert tuple(re.findall(r"`([^`]+)`", rooms)) == free
    lazy = set(re.findall(r"`([^`]+)`", files))
    wrong, used = [], set()
    for path in modules():
        name = str(path.relative_to(SOURCE))
        for module, node, inside in imports(path):
            if module.split(".")[0] == "mindspore" and name.split("/")[0] not in free:
                used.add(name)
                if not inside or name not in lazy:
                    wrong.append(f"{place(path, node)}: {module}")
    assert not wrong
    assert used == lazy


def test_only_one_file_sets_mindspores_context() -> None:
    setting = re.compile(r"\b(set_context|set_device|set_auto_parallel_context)\(")
    found = {str(path.relative_to(SOURCE)) for path in modules() if setting.search(path.read_text(encoding="utf-8"))}
    assert found == {"model/device.py"}
