"""Blocks encoded by other processes: the same results in the same order, here and on a real Ray cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from spark13b.data.blocks import Block, read_blocks
from spark13b.data.encoding import Encoded, Recipe
from spark13b.data.engine import encoding
from spark13b.data.preprocess import preprocess_pretrain
from spark13b.data.tokenizer import SparkTokenizer
from spark13b.errors import InputError, JobError

GOLDEN = Path(__file__).parents[1] / "golden"
ALPACA = GOLDEN / "preprocess" / "alpaca200.json"
TOKENIZER = SparkTokenizer.load(GOLDEN / "tokenizer")
RECIPE = Recipe("sft", TOKENIZER.model)


def found(blocks: list[Block], **way) -> list[Encoded]:
    with encoding(RECIPE, **way) as encode:
        return list(encode(iter(blocks)))


def test_processes_give_what_one_gives_in_the_same_order(monkeypatch):
    monkeypatch.setattr("spark13b.data.blocks._TABLE_ROWS", 9)
    blocks = list(read_blocks(ALPACA))
    assert len(blocks) > 20
    for one, other in zip(found(blocks, workers=1), found(blocks, workers=2), strict=True):
        np.testing.assert_array_equal(one.examples.ids, other.examples.ids)
        np.testing.assert_array_equal(one.examples.mask, other.examples.mask)
        assert one.formats == other.formats


def test_no_thread_is_left_when_the_work_is_broken_off():
    blocks, before = list(read_blocks(ALPACA)), set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt), encoding(RECIPE, workers=2) as encode:
        next(iter(encode(iter(blocks * 20))))
        raise KeyboardInterrupt
    assert set(threading.enumerate()) == before


def test_no_more_blocks_are_taken_than_are_needed_soon():
    taken = []

    def blocks() -> Iterator[Block]:
        for number in range(100):
            taken.append(number)
            yield Block(Path("a"), number, b'{"instruction": "q", "output": "a"}', "jsonl", [])

    with encoding(RECIPE, workers=2) as encode:
        for done, _ in enumerate(encode(blocks()), 1):
            assert len(taken) <= done + 6


def test_a_process_that_is_killed_is_told_and_the_others_end():
    blocks = [Block(Path("a"), 1, b'{"instruction": "q", "output": "a"}\n' * 2000, "jsonl", [])] * 200
    me = psutil.Process()
    with (
        pytest.raises(JobError, match="was killed, most likely because memory ran out") as caught,
        encoding(RECIPE, workers=2) as encode,
    ):
        for number, _ in enumerate(encode(iter(blocks))):
            if number == 3:
                workers = [one for one in me.children(recursive=True) if one.ppid() != me.pid]
                max(workers, key=lambda one: one.memory_info().rss).kill()
    assert "fewer --workers" in str(caught.value.fix)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real cluster of this machine alone."""
    ray = Path(sys.executable).with_name("ray")
    if not ray.exists():
        pytest.skip("ray is not installed")
    with socket.create_server(("127.0.0.1", 0)) as listening:  # above the ports that Ray keeps for its workers
        port = listening.getsockname()[1]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    start = [ray, "start", "--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    start += ["--object-store-memory=100000000", "--disable-usage-stats"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # no pipes: the cluster's processes would hold them open
    assert subprocess.run(start, env=environment, timeout=120, **quiet).returncode == 0
    yield f"127.0.0.1:{port}"
    subprocess.run([ray, "stop", "--force"], env=environment, timeout=120, **quiet)


def test_a_ray_cluster_makes_the_same_bytes(cluster, tmp_path):
    words = [sys.executable, "-m", "spark13b", "preprocess", "pretrain", "--input", ALPACA, "--seq-length", 255]
    words += ["--tokenizer", GOLDEN / "tokenizer", "--output", tmp_path / "theirs" / "rows.mindrecord"]
    words += ["--engine", "ray", "--ray-address", cluster]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    preprocess_pretrain([ALPACA], tmp_path / "ours" / "rows.mindrecord", TOKENIZER, 255)
    for path in (tmp_path / "ours").iterdir():
        assert (tmp_path / "theirs" / path.name).read_bytes() == path.read_bytes()


def test_an_address_without_ray_is_refused(tmp_path):
    words = [sys.executable, "-m", "spark13b", "preprocess", "pretrain", "--input", ALPACA, "--seq-length", 255]
    words += ["--tokenizer", GOLDEN / "tokenizer", "--output", tmp_path / "rows.mindrecord"]
    alone = subprocess.run([*map(str, words), "--ray-address", "auto"], capture_output=True, text=True)
    assert alone.returncode == 2
    assert "--ray-address is for --engine ray" in alone.stderr


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "no-such-host.invalid:6379", "ray://127.0.0.1:1", "127.0.0.1:99999"]
)
def test_an_address_where_nothing_listens_is_refused_at_once(address):
    pytest.importorskip("ray")
    with pytest.raises(InputError, match="no Ray cluster answers") as refused:
        found([], workers=1, engine="ray", address=address)
    assert refused.value.where == address
