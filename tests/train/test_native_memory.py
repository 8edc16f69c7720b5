"""The plan of runs that the native library computes: its memory by hand, and where that is planned."""

from __future__ import annotations

from typing import Any

import pytest

from spark13b.config import Preset, load_preset
from spark13b.errors import InputError
from spark13b.native.library import Found, Library
from spark13b.native.training import training_bytes
from spark13b.train.memory import training_memory
from spark13b.train.plan import make_plan

# Texts, tokens, layers, hidden size, heads, width of gate and up, vocabulary; two pieces of 32 rows. Whole cache lines.
SIZES = TEXTS, TOKENS, LAYERS, HIDDEN, HEADS, MLP, VOCABULARY = 2, 32, 3, 64, 2, 48, 96
ROWS = TEXTS * TOKENS
MATRICES = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * MLP  # of a layer
BIASES = 5 * HIDDEN + 2 * MLP
RANK = 4
SINGLE, HALF = 0, 1  # types


def bytes_of(
    library: Library,
    kind: int,
    weights: int = SINGLE,
    recompute: bool = False,
    adapted: int = 0,
    drops: bool = False,
) -> int:
    """`kind`: of products; `weights`: of linear layers and the embedding; `adapted`: a bit for each linear layer."""
    types, rank = [weights] * (1 + 7 * LAYERS), RANK if adapted else 0
    return training_bytes(library, [*SIZES, kind, weights, recompute, rank, adapted, drops], types)


def test_float32_keeps_six_rows_of_the_residual_width_and_two_of_the_mlp_a_layer(native_library: Library) -> None:
    layer = 4 * ROWS * (6 * HIDDEN + HEADS + 2 * MLP)
    work = 4 * ROWS * (7 * HIDDEN + 3 * MLP + 2 + VOCABULARY) + 4 * 2 * 2 * HIDDEN  # loss, hit; two pieces' sums
    assert bytes_of(native_library, SINGLE) == LAYERS * layer + work
    assert bytes_of(native_library, SINGLE, recompute=True) == layer + (LAYERS - 1) * 4 * ROWS * HIDDEN + work


def test_bfloat16_halves_the_rows_of_the_mlp_and_holds_rounded_weights(native_library: Library) -> None:
    layer = ROWS * (4 * (6 * HIDDEN + HEADS) + 2 * 2 * MLP)
    work = ROWS * (4 * 6 * HIDDEN + 2 * 4 * HIDDEN + 2 * 3 * MLP + 4 * 2 + 4 * VOCABULARY) + 4 * 2 * 2 * HIDDEN
    weights = 2 * (LAYERS * MATRICES + VOCABULARY * HIDDEN)
    assert bytes_of(native_library, HALF) == LAYERS * layer + work + weights


def test_adapters_add_their_rows_and_scaled_copies_and_a_rounded_base_its_biases(native_library: Library) -> None:
    q, down = 1, 1 << 6
    sizes = 2 * HIDDEN + MLP + HIDDEN  # of A and B, a layer and rank
    beside = 4 * RANK * (LAYERS * (sizes + 2 * ROWS) + 7 * ROWS)
    assert bytes_of(native_library, SINGLE, adapted=q | down) == bytes_of(native_library, SINGLE) + beside
    # in bfloat16 the adapters are rounded, too; a base in it is not copied, but for biases
    rounded = 2 * RANK * (LAYERS * (2 * sizes + 2 * ROWS) + 7 * ROWS)
    assert bytes_of(native_library, HALF, adapted=q | down) == bytes_of(native_library, HALF) + rounded
    base = 4 * LAYERS * BIASES - 2 * (LAYERS * MATRICES + VOCABULARY * HIDDEN)
    half = bytes_of(native_library, HALF, HALF, adapted=q | down)
    assert half == bytes_of(native_library, HALF, adapted=q | down) + base
    # with dropout the inputs of q, k and v lie apart, and the float32 gradients that go through their adapters
    for kind, size in ((SINGLE, 4), (HALF, 2)):
        dropped = bytes_of(native_library, kind, adapted=q, drops=True) - bytes_of(native_library, kind, adapted=q)
        assert dropped == ROWS * 3 * HIDDEN * (size + 4)


def test_large_logits_take_64_megabytes(native_library: Library) -> None:
    sizes = ([8, 4096, 1, 64, 2, 48, vocabulary, *[0] * 6] for vocabulary in (16, 32000))
    small, large = (training_bytes(native_library, numbers, [SINGLE] * 8) for numbers in sizes)
    assert large - small == pytest.approx(64 * 2**20 - 4 * 8 * 4096 * 16, rel=1e-3)


def test_a_step_of_no_shape_is_refused(native_library: Library) -> None:
    with pytest.raises(ValueError, match="there is no step"):
        training_bytes(native_library, [2, 32, 3, 63, 2, 48, 96, *[0] * 6], [SINGLE] * 22)


@pytest.fixture
def found(native_library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is the one of the tests."""
    monkeypatch.setattr("spark13b.model.native_choice.find_library", lambda: Found(native_library, ""))


def preset(name: str, **changes: Any) -> Preset:
    return load_preset(name, options={key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.parametrize("name", ["cpu-tiny-sft", "cpu-tiny-lora"])
def test_the_plan_is_of_what_computes_the_run(name: str, found: None, monkeypatch: pytest.MonkeyPatch) -> None:
    native = training_memory(preset(name), 512)
    of_mindspore = ({"model__attention_backend": "blocked"}, {"machine__devices": 2, "parallel__model_parallel": 2})
    for changes in of_mindspore:
        assert training_memory(preset(name, **changes), 512).total > 2 * native.total
    monkeypatch.undo()
    monkeypatch.setenv("SPARK13B_NATIVE", "0")
    assert training_memory(preset(name), 512).total > 2 * native.total


def test_a_run_that_fits_by_the_library_is_not_refused_and_changes_are_what_it_takes_then(
    found: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"model__num_layers": 8, "train__batch_size": 8}
    kept, again = (training_memory(preset("cpu-tiny-sft", **sizes, train__recompute=on), 512) for on in (False, True))
    enough, little = kept.total / 2**30 + 0.01, again.total / 2**30 + 0.01
    assert make_plan(preset("cpu-tiny-sft", **sizes, machine__max_device_memory_gb=enough)).memory == kept
    with pytest.raises(InputError) as raised:
        make_plan(preset("cpu-tiny-sft", **sizes, machine__max_device_memory_gb=little))
    assert "train.recompute=true" in str(raised.value.fix)
    monkeypatch.undo()
    monkeypatch.setenv("SPARK13B_NATIVE", "0")
    with pytest.raises(InputError, match="a device needs"):
        make_plan(preset("cpu-tiny-sft", **sizes, machine__max_device_memory_gb=enough))
