"""Training divided over real processes of msrun gives the losses and the weights of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spark13b.model.names import model_axis
from train.parallel_cases import Case, run

SEQUENCE, SHARD = "parallel.sequence_parallel=true", "parallel.optimizer_shard=true"
PARTS = ("train.accumulation_steps=2", "train.batch_size=2")
SLICED = ("train.recompute=true", "train.recompute_slice_activations=true")

# What only divides the work, and changes no number
_DIVIDES = ("parallel.", "train.accumulation_steps", "train.batch_size", "train.recompute")

# All weights in two processes that share the model, recomputed, are in cli/test_train_together.py.
TWO = [
    Case("data", 2, values=(SHARD, PARTS[0], "train.batch_size=1")),
    # one adapter is cut by rows, one by columns; the dropout of adapters is 0.1
    Case("lora", 1, 2, "lora", values=("lora.targets=q_proj|out_proj", *PARTS, *SLICED)),
]
FOUR = [Case("everything", 2, 2, values=(SEQUENCE, SHARD, "train.dropout=0.2"))]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, np.ndarray]]]:
    """Case -> what each rank has in the end; the cases share the processes, which take seconds to start."""
    results = {}
    for processes, cases in ((2, TWO), (4, FOUR)):
        folder = tmp_path_factory.mktemp(f"processes-{processes}")
        (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
        worker = Path(__file__).with_name("parallel_worker.py")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            *("msrun", f"--worker_num={processes}", f"--local_worker_num={processes}", "--master_addr=127.0.0.1"),
            *(f"--master_port={port}", "--join=True", f"--log_dir={folder / 'log'}", "--bind_core=False"),
            *(str(worker), str(folder / "cases.json"), str(folder)),
        ]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command, env={**os.environ, "PATH": path, "GLOG_v": "3"}, capture_output=True, text=True, timeout=550
        )
        log = folder / "log" / "worker_0.log"
        assert done.returncode == 0, log.read_text()[-2000:] if log.exists() else done.stderr
        for case in cases:
            results[case.name] = [dict(np.load(folder / f"{case.name}-{rank}.npz")) for rank in range(processes)]
    return results


@pytest.fixture(scope="module")
def alone() -> Any:
    """A function: the same case in this process alone, each kind once."""
    made: dict[Case, dict[str, np.ndarray]] = {}

    def of(case: Case) -> dict[str, np.ndarray]:
        kept = tuple(value for value in case.values if not value.startswith(_DIVIDES))
        single = replace(case, name="alone", data_parallel=1, model_parallel=1, values=kept)
        if single not in made:
            made[single] = run(single)
        return made[single]

    return of


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", [*TWO, *FOUR], ids=lambda case: case.name)
def test_losses_norms_weights_and_optimizer_state_are_those_of_one_process(
    case: Case, found: dict[str, list[dict[str, np.ndarray]]], alone: Any
) -> None:
    expected = alone(case)
    for rank, arrays in enumerate(found[case.name]):
        assert arrays.keys() == expected.keys()
        np.testing.assert_allclose(arrays["losses"], expected["losses"], rtol=1e-5)
        np.testing.assert_allclose(arrays["norms"], expected["norms"], rtol=1e-5)
        for name in expected.keys() - {"losses", "norms"}:
            own = part(expected[name], name, case, rank, arrays[name].shape)
            np.testing.assert_allclose(
                arrays[name], own, atol=1e-5 * np.abs(expected[name]).max() + 1e-9, err_msg=f"{name}, rank {rank}"
            )


def test_the_optimizer_state_is_divided_where_the_preset_says_so(
    found: dict[str, list[dict[str, np.ndarray]]],
) -> None:
    table = "transformer.embedding.word_embeddings.embedding_table"
    first, last = found["everything"][0], found["everything"][3]
    assert first[table].shape == (20, 32)  # half the vocabulary
    assert first[f"adam_m.{table}"].shape == (10, 32)  # and half of that
    assert not np.array_equal(first[f"adam_m.{table}"], last[f"adam_m.{table}"])


def part(whole: np.ndarray, name: str, case: Case, rank: int, shape: tuple[int, ...]) -> np.ndarray:
    """What `rank` holds of a whole array, of which it has `shape`."""
    row, column = divmod(rank, case.model_parallel)
    parameter = name.partition(".")[2] if name.startswith("adam_") else name
    axis = model_axis(parameter, whole.ndim) if case.model_parallel > 1 else None
    if axis is not None:
        whole = np.split(whole, case.model_parallel, axis)[column]
    return whole if whole.shape == shape else np.split(whole, case.data_parallel, 0)[row]
