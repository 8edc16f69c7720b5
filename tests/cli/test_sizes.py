"""What every --shard-size takes: one kind of sizes, and what its help says of a number alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process import Run

from spark13b.cli.sizes import MIB, bytes_of
from spark13b.data.mindrecord import read_manifest
from spark13b.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("4g", 4 * 10**9),
        ("512 MiB", 512 << 20),
        ("1.5kb", 1500),
        ("100", 100),
        ("100B", 100),
        (" 2TiB ", 2 << 40),
        ("1" + "0" * 400, 10**400),  # no float
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "4XB", "-1GB", "4Mi", "4 i", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no size"):
        bytes_of(text)


@pytest.mark.parametrize("text", ["0", "0.4B", "0GB"])
def test_a_file_of_no_bytes_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is 0 bytes"):
        bytes_of(text)


@pytest.mark.parametrize(("text", "size"), [("2", 2 * MIB), ("2MiB", 2 * MIB), ("2MB", 2_000_000), ("0.1GB", 10**8)])
def test_preprocess_counts_a_number_alone_in_mib(spark13b: Run, tmp_path: Path, text: str, size: int) -> None:
    rows = tmp_path / "rows.mindrecord"
    words = ("--tokenizer", GOLDEN / "tokenizer", "--seq-length", 1024, "--output", rows, "--shard-size", text)
    spark13b("preprocess", "sft", "--input", GOLDEN / "preprocess" / "alpaca200.json", *words)
    manifest = read_manifest(rows)
    assert manifest is not None
    assert manifest.options == {"shard_size": size}


@pytest.mark.parametrize("command", [("preprocess", "sft"), ("preprocess", "pretrain")])
def test_preprocess_refuses_files_of_less_than_a_mebibyte(
    spark13b: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    source = GOLDEN / "preprocess" / "alpaca200.json"
    words = ("--input", source, "--output", tmp_path / "rows.mindrecord", "--tokenizer", GOLDEN / "tokenizer")
    said = spark13b(*command, *words, "--shard-size", "4KB", code=2).stderr
    assert "'4KB' is 4,000 bytes, and a file has at least 1,048,576" in said
    assert "at: --shard-size" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [("preprocess", "sft"), ("ckpt", "convert"), ("ckpt", "quantize"), ("export",)])
def test_every_help_says_which_sizes_there_are(spark13b: Run, command: tuple[str, ...]) -> None:
    said = " ".join(spark13b(*command, "--help").stdout.replace("│", " ").split())
    assert "or 512MiB; a number alone is" in said
