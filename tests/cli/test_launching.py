"""How many processes a command starts here, and that the plan counts on as many."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.launching import write_table
from spark13b.cli.launching import Processes
from spark13b.cli.sharing import options_for
from spark13b.config import Preset, load_preset
from spark13b.errors import InputError
from spark13b.train.plan import devices_per_node

CPU_64 = ["machine.devices=64", "parallel.data_parallel=64"]


def with_processes(processes: Processes, name: str, assignments: list[str] | None = None) -> Preset:
    """The preset as commands make it."""
    options = processes.options(load_preset(name), assignments or [])
    return load_preset(name, options=options, assignments=assignments or [])


@pytest.mark.parametrize(
    ("processes", "name", "assignments", "here"),
    [
        (Processes(), "cpu-tiny-sft", ["machine.devices=8", "parallel.data_parallel=8"], 8),
        (Processes(nproc=64), "cpu-tiny-sft", [], 64),
        (Processes(nproc=64), "cpu-tiny-sft", CPU_64, 64),
        (Processes(nproc=16), "800-sft", [], 16),  # as many as the preset has, on one machine
        (Processes(nproc=4, nnodes=2, node_rank=0, master_addr="h"), "cpu-tiny-sft", [], 4),
        (Processes(nnodes=8, node_rank=0, master_addr="h"), "cpu-tiny-sft", CPU_64, 8),
        (Processes(nnodes=2, node_rank=0, master_addr="h"), "800-sft", [], 8),
    ],
)
def test_as_many_processes_start_here_as_the_plan_counts_on_one_machine(
    processes: Processes, name: str, assignments: list[str], here: int
) -> None:
    preset = with_processes(processes, name, assignments)
    workers = processes.workers(preset)
    assert workers is not None
    assert len(workers.ranks) == devices_per_node(preset) == here


@pytest.mark.parametrize(
    ("processes", "name", "assignments", "message"),
    [
        (Processes(), "cpu-tiny-sft", CPU_64, "64 processes would start here, and a machine of the preset has 8"),
        (Processes(), "800-sft", [], "made for an Ascend NPU, and MindSpore sees none here"),
        (
            Processes(nnodes=2, node_rank=0, master_addr="h"),
            "cpu-tiny-sft",
            CPU_64,
            "32 processes would start here, and a machine of the preset has 8",
        ),
    ],
)
def test_more_processes_than_a_machine_of_the_preset_has_devices_are_refused_unless_they_are_asked_for(
    processes: Processes, name: str, assignments: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        processes.workers(with_processes(processes, name, assignments))
    advised = ("--nnodes", "--nproc") if "processes" in message else ("choose a cpu preset",)
    assert all(words in str(refused.value.fix) for words in advised)


def test_machines_of_a_rank_table_have_as_many_devices_as_its_servers(tmp_path: Path) -> None:
    table = write_table(tmp_path, {"10.0.0.1": 5, "10.0.0.2": 5})
    processes = Processes(rank_table=table, node_rank=1)
    preset = with_processes(processes, "800T-A2-sft", ["parallel.model_parallel=1"])
    workers = processes.workers(preset)
    assert workers is not None
    assert len(workers.ranks) == devices_per_node(preset) == 5
    assert preset.machine.devices == 10


def test_all_processes_that_share_a_model_to_answer_are_on_one_machine() -> None:
    heads = ["model.hidden_size=144", "model.num_heads=9", "model.ffn_hidden_size=288", "model.vocab_size=900"]
    preset = load_preset("cpu-tiny-infer", options=options_for(9), assignments=heads)
    assert devices_per_node(preset) == preset.machine.devices == 9
