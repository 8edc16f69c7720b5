"""Which attention backend runs where, and why not."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark13b.config.model import SparkConfig
from spark13b.errors import InputError
from spark13b.model.attention import choose
from spark13b.model.attention.choose import BLOCKED_SCORES, PLAIN_SCORES, block_size, choose_backend, plain_fits


def config(**changes: Any) -> SparkConfig:
    """Two heads of 64, window 512."""
    shape: dict[str, Any] = {"hidden_size": 128, "num_heads": 2, "sparse_local_size": 512, "compute_type": "float16"}
    return SparkConfig(**(shape | changes))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend an Ascend chip and whether the acctransformer package is installed."""

    def pretend(chip: str, installed: bool) -> None:
        monkeypatch.setattr(choose, "ascend_chip", lambda: chip)
        spec = importlib.util.spec_from_loader("acctransformer", None) if installed else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "acctransformer" else None)

    return pretend


@pytest.mark.parametrize(
    ("chip", "installed", "changes", "backend", "reason"),
    [
        ("910B", False, {}, "ascend", "the fused attention of this device"),
        ("910B", True, {}, "ascend", "the fused attention of this device"),
        ("910B", False, {"compute_type": "bfloat16"}, "ascend", "the fused attention of this device"),
        ("910B", False, {"compute_type": "float32"}, "plain", "the 6 x 1000 x 1000 scores fit in 64 MB"),
        ("910B", False, {"num_heads": 4, "hidden_size": 32}, "plain", "the 12 x 1000 x 1000 scores fit in 64 MB"),
        ("910A", True, {}, "acctransformer", "the fused attention of this device"),
        ("910A", False, {}, "plain", "the 6 x 1000 x 1000 scores fit in 64 MB"),
        ("910A", True, {"compute_type": "bfloat16"}, "plain", "the 6 x 1000 x 1000 scores fit in 64 MB"),
        ("910A", True, {"sparse_local_size": 500}, "plain", "the 6 x 1000 x 1000 scores fit in 64 MB"),
    ],
)
def test_auto_takes_the_fused_attention_of_the_chip_where_it_can(
    chip: str, installed: bool, changes: dict[str, Any], backend: str, reason: str, machine: Any
) -> None:
    machine(chip, installed)
    choice = choose_backend(config(**changes), "ascend", batch=3, tokens=1000)
    assert (choice.backend, choice.reason) == (backend, reason)


def test_auto_on_a_cpu_goes_by_the_size_of_the_scores() -> None:
    longest = next(tokens for tokens in range(1, 10**5) if 6 * tokens * tokens > PLAIN_SCORES) - 1
    assert choose_backend(config(), "cpu", 3, longest).backend == "plain"
    blocked = choose_backend(config(), "cpu", 3, longest + 1)
    assert blocked.backend == "blocked"
    assert blocked.reason == f"{longest + 1} tokens go block by block, in memory linear in the length"


@pytest.mark.parametrize("backend", ["plain", "blocked"])
@pytest.mark.parametrize("device", ["cpu", "ascend"])
def test_plain_and_blocked_can_be_forced_anywhere(backend: Any, device: Any, machine: Any) -> None:
    machine("910B", True)
    choice = choose_backend(config(attention_backend=backend), device, 1, 10)
    assert (choice.backend, choice.reason) == (backend, "set by model.attention_backend")


@pytest.mark.parametrize(
    ("backend", "device", "chip", "installed", "changes", "problem"),
    [
        ("ascend", "cpu", "", False, {}, "it needs an Ascend NPU, and MindSpore sees none"),
        ("acctransformer", "cpu", "", True, {}, "it needs an Ascend NPU, and MindSpore sees none"),
        ("ascend", "ascend", "910A", True, {}, "ops.flash_attention_score does not exist on the Ascend 910A"),
        ("ascend", "ascend", "910B", True, {"compute_type": "float32"}, "model.compute_type is float32"),
        ("ascend", "ascend", "910B", True, {"hidden_size": 48}, "the head size 24 is not a multiple of 16"),
        ("acctransformer", "ascend", "910B", True, {}, "acctransformer is for the Ascend 910A"),
        ("acctransformer", "ascend", "910A", False, {}, "the package acctransformer is not installed"),
        ("acctransformer", "ascend", "910A", True, {"compute_type": "bfloat16"}, "computes in float16"),
        ("acctransformer", "ascend", "910A", True, {"sparse_local_size": 100}, "window 100 is not a multiple of 128"),
    ],
)
def test_a_forced_backend_that_cannot_run_is_refused_with_problem_place_and_cure(
    backend: Any, device: Any, chip: str, installed: bool, changes: dict[str, Any], problem: str, machine: Any
) -> None:
    machine(chip, installed)
    with pytest.raises(InputError) as caught:
        choose_backend(config(attention_backend=backend, **changes), device, 1, 10)
    assert caught.value.what.startswith(f"attention_backend '{backend}' cannot be used: ")
    assert problem in caught.value.what
    assert caught.value.where == "model.attention_backend"
    assert caught.value.fix == "set it to auto, plain or blocked"


@pytest.mark.parametrize(("backend", "chip"), [("ascend", "910B"), ("acctransformer", "910A")])
def test_a_fused_backend_can_be_forced_where_it_runs(backend: Any, chip: str, machine: Any) -> None:
    machine(chip, True)
    assert choose_backend(config(attention_backend=backend), "ascend", 1, 10).backend == backend


def test_a_model_with_a_backend_that_cannot_run_is_refused_before_any_weight_is_made() -> None:
    from spark13b.model import SparkForCausalLM

    with pytest.raises(InputError, match="attention_backend 'ascend' cannot be used"):
        SparkForCausalLM(config(attention_backend="ascend", num_layers=1, vocab_size=8, ffn_hidden_size=8), seed=None)


@pytest.mark.parametrize(
    ("name", "chip"),
    [("Ascend910", "910A"), ("Ascend910A", "910A"), ("Ascend910B3", "910B"), ("Ascend910_9362", "910B")],
)
def test_the_chip_is_read_off_mindspores_device_name(name: str, chip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import mindspore

    hal = ModuleType("hal")
    hal.get_device_name = lambda number, device: name  # type: ignore[attr-defined]
    monkeypatch.setattr(mindspore, "hal", hal)
    assert choose.ascend_chip() == chip


@given(st.integers(1, 1000), st.integers(1, 10**6), st.integers(1, 10**5))
def test_blocks_are_powers_of_two_that_keep_their_scores_in_bounds_and_waste_no_half(
    heads: int, tokens: int, window: int
) -> None:
    size = block_size(heads, tokens, window)
    assert size in (16, 32, 64, 128, 256, 512, 1024)
    if size > 16:
        assert heads * size * (min(window, tokens) + size) <= BLOCKED_SCORES
        assert size < 2 * tokens


@given(st.integers(1, 1000), st.integers(1, 10**5))
def test_plain_never_holds_more_scores_than_its_bound(heads: int, tokens: int) -> None:
    assert plain_fits(heads, tokens) == (heads * tokens**2 <= PLAIN_SCORES)
