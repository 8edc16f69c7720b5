"""Adapters beside a quantised base: the numbers of the float base that it stands for, runs, plans and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor

from model.compiled import native_gradients, tensors
from model.numpy_model import random_weights
from spark13b.ckpt import open_checkpoint, write_checkpoint
from spark13b.ckpt.adapters import open_adapters, parts_of
from spark13b.ckpt.merging import merged
from spark13b.ckpt.quantized import QuantizedCheckpoint
from spark13b.ckpt.quantizing import Wanted, quantize_checkpoint
from spark13b.config.model import SparkConfig
from spark13b.config.sections import LoraConfig
from spark13b.errors import InputError
from spark13b.model import native_choice
from spark13b.model.initialize import initial_value
from spark13b.model.loss import TINY
from spark13b.model.names import adapter_shapes, expected_shapes
from spark13b.model.native_training import NativeGradients
from spark13b.model.quantized import QuantizedLora
from spark13b.model.transformer import Setup
from spark13b.native.library import Found, Library
from spark13b.native.matrix import Matrix
from spark13b.native.packing import dequantize, quantize
from spark13b.run_folder import RunFolder
from spark13b.train.evaluation import evaluate
from spark13b.train.memory import training_memory
from spark13b.train.rounded import RoundedBase
from spark13b.train.run import Job, check, train
from train.small_run import Notes, small_preset, small_rows

Array = np.ndarray
# Rows of 160 and 96 are a block of 128 that is unpacked at once, and what is left of it
SHAPE: dict[str, Any] = {"num_layers": 2, "hidden_size": 160, "num_heads": 2, "ffn_hidden_size": 192}


def config(**changes: Any) -> SparkConfig:
    return SparkConfig(**(SHAPE | {"vocab_size": 71, "seq_length": 80, "sparse_local_size": 9} | changes))


def rounded(shape: SparkConfig) -> tuple[dict[str, Array | Matrix], dict[str, Array]]:
    """A base of int4, int8 and, in one layer, bfloat16 and float32; and what it stands for."""
    base: dict[str, Array | Matrix] = {}
    for name, array in random_weights(shape, seed=3, deviation=0.1).items():
        wide = np.ascontiguousarray(array, np.float32)
        base[name] = wide
        if wide.ndim == 2 and "0.attention.k_proj" not in name:
            base[name] = quantize(wide, 8 if "embedding" in name or "v_proj" in name else 4, 32)
    return base, {name: dequantize(one) if isinstance(one, Matrix) else one for name, one in base.items()}


def random_adapters(shape: SparkConfig, lora: LoraConfig) -> dict[str, Array]:
    rng = np.random.default_rng(lora.rank)
    shapes = adapter_shapes(shape, lora)
    return {name: (0.2 * rng.standard_normal(size)).astype(np.float32) for name, size in shapes.items()}


def batch() -> tuple[Array, Array]:
    """ids (3, 24) and the mask of targets (3, 23)"""
    rng = np.random.default_rng(7)
    return rng.integers(0, 71, (3, 24)), rng.integers(0, 2, (3, 23)).astype(float)


def beside(model: QuantizedLora, recompute: bool = False) -> Callable[[], tuple[float, dict[str, Array]]]:
    """The loss of the batch and the gradients of the adapters, as they are when it is called."""
    assert model.library is not None
    compute, (ids, mask) = NativeGradients(model.library, model.native_parameters(), recompute), batch()
    key, factor = Tensor(np.zeros(2, np.int32)), Tensor(np.float32(1.0 / (mask.sum() + TINY)))

    def call() -> tuple[float, dict[str, Array]]:
        loss, gradients = compute(*tensors(ids, mask), key, factor)
        arrays = (gradient.asnumpy() for gradient in gradients)
        return float(loss.asnumpy()), dict(zip(model.trainable(), arrays, strict=True))

    return call


@pytest.fixture
def there(native_library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_choice, "find_library", lambda: Found(native_library, ""))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("targets", "rank", "recompute", "dropout"),
    [(".", 3, False, 0.0), (".", 3, True, 0.1), ("[qv]_proj", 5, True, 0.0), ("fc2", 1, True, 0.0)],
)
def test_loss_and_gradients_have_the_bits_of_those_beside_the_float_base(
    native_library: Library, there: None, targets: str, rank: int, recompute: bool, dropout: float, kind: str
) -> None:
    shape, lora = config(compute_type=kind), LoraConfig(rank=rank, alpha=2.5, targets=targets, dropout=dropout)
    base, twin = rounded(shape)
    adapters = random_adapters(shape, lora)
    expected, slopes = native_gradients(native_library, shape, twin | adapters, recompute, lora, dropout)(*batch())
    model = QuantizedLora(shape, base, Setup(lora=lora, dropout=dropout))
    model.load_adapters(adapters)
    loss, found = beside(model, recompute)()
    assert (loss, list(found)) == (expected, list(slopes))
    for name, slope in slopes.items():
        np.testing.assert_array_equal(found[name], slope, err_msg=name)


@pytest.mark.parametrize("level", [0, 1])
def test_the_bits_are_the_same_on_lesser_instructions(
    native_library: Library, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    library = Library(native_library.path, level)
    monkeypatch.setattr(native_choice, "find_library", lambda: Found(library, ""))
    shape, lora = config(), LoraConfig(rank=2, targets="fc[01]")
    base, twin = rounded(shape)
    adapters = random_adapters(shape, lora)
    expected, slopes = native_gradients(library, shape, twin | adapters, lora=lora)(*batch())
    model = QuantizedLora(shape, base, Setup(lora=lora))
    model.load_adapters(adapters)
    loss, found = beside(model)()
    assert loss == expected
    for name, slope in slopes.items():
        np.testing.assert_array_equal(found[name], slope, err_msg=name)


def test_gradients_are_the_slopes_of_the_loss(there: None) -> None:
    """By central differences along a direction: the loss is a sum in float32."""
    lora = LoraConfig(rank=3, alpha=2.5, targets="out_proj")
    shape = config()
    model, adapters = QuantizedLora(shape, rounded(shape)[0], Setup(lora=lora)), random_adapters(shape, lora)
    model.load_adapters(adapters)
    call = beside(model)
    _, gradients = call()
    rng = np.random.default_rng(1)
    for name, gradient in gradients.items():
        way, step = rng.standard_normal(gradient.shape).astype(np.float32), np.float32(0.01)
        losses = []
        for sign in (1, -1):
            model.load_adapters(adapters | {name: adapters[name] + sign * step * way})
            losses.append(call()[0])
        slope = float((gradient * way).sum(dtype=np.float64))
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=0.02, abs=1e-4), name


PRESET: dict[str, Any] = {
    "task": "lora",
    "model__hidden_size": 64,
    "model__ffn_hidden_size": 128,
    "lora__rank": 3,
    "lora__alpha": 12.0,
    "schedule__warmup_steps": 0,
    "schedule__lr": 0.02,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_rows(tmp_path_factory.mktemp("rows"), records=40)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base in float32, the same quantised, and what that stands for."""
    folder, model = tmp_path_factory.mktemp("base"), small_preset(**PRESET).model
    weights = {name: initial_value(name, shape, model, 1) for name, shape in expected_shapes(model).items()}
    write_checkpoint(folder / "float.ckpt", weights)
    with open_checkpoint(folder / "float.ckpt") as source:
        quantize_checkpoint(source, folder / "int4", Wanted(4, 8, 32))
    with open_checkpoint(folder / "int4") as quantized:
        write_checkpoint(folder / "twin.ckpt", dict(quantized))
    return {name: folder / name for name in ("float.ckpt", "int4", "twin.ckpt")}


def curve(run: RunFolder) -> list[float]:
    return [record["loss"] for record in map(json.loads, run.metrics.read_text().splitlines()) if "loss" in record]


def test_a_run_learns_as_beside_floats_goes_on_to_the_last_bit_and_its_adapters_are_measured_and_merged(
    there: None, rows: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    preset, runs = small_preset(**PRESET), {name: RunFolder(tmp_path / name) for name in ("int4", "twin.ckpt")}
    run = runs["int4"]
    evaluation = train(Job(preset, rows, run.path, load=bases["int4"], eval_data=rows)).evaluation
    train(Job(preset, rows, runs["twin.ckpt"].path, load=bases["twin.ckpt"]))
    assert curve(run) == curve(runs["twin.ckpt"])
    assert min(curve(run)) < max(curve(run)) - 0.1
    assert evaluate(preset, rows, bases["twin.ckpt"], adapter=run.path) == evaluation
    again = RunFolder(tmp_path / "again")
    shutil.copytree(run.path, again.path, symlinks=True)
    shutil.rmtree(again.checkpoint(6))
    train(Job(preset, rows, again.path, resume=True))
    assert curve(again) == curve(run)

    with (
        open_adapters(run.path) as adapters,
        open_checkpoint(bases["float.ckpt"]) as base,  # of the same model, before it was quantised
        merged(base, adapters) as whole,
    ):
        assert whole.shapes() == base.shapes()
    with parts_of(run.path).open(preset.model) as parts:
        assert isinstance(parts.base, QuantizedCheckpoint)
        assert parts.doubt() is None


def test_a_run_that_goes_on_beside_another_rounding_says_so(
    there: None, rows: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    (once, twice), run, notes = (small_preset(**PRESET, train__steps=n) for n in (1, 2)), RunFolder(tmp_path), Notes()
    train(Job(once, rows, run.path, load=bases["int4"]), notes)
    assert not any("began beside" in text for text in notes.said)
    train(Job(twice, rows, run.path, load=bases["float.ckpt"], resume=True), notes)
    kept = "int4/32 and int8/32"
    assert f"note: the run began beside {kept} weights, and those of {bases['float.ckpt']} are float" in notes.said
    with open_adapters(run.path) as adapters:
        assert adapters.card.base_weights == "float"


def test_a_quantised_base_is_measured_where_it_lies(there: None, rows: Path, bases: dict[str, Path]) -> None:
    preset = small_preset(**PRESET)
    assert evaluate(preset, rows, bases["int4"]) == evaluate(preset, rows, bases["twin.ckpt"])


@pytest.mark.parametrize(
    ("changes", "said", "fix"),
    [
        ({"model__compute_type": "float16", "train__loss_scale": "dynamic"}, "is float16", "set it to bfloat16"),
        ({"machine__devices": 2, "parallel__model_parallel": 2}, "several processes", "parallel.model_parallel to 1"),
    ],
)
def test_what_the_library_cannot_do_is_refused_before_anything_is_loaded(
    there: None, bases: dict[str, Path], tmp_path: Path, changes: dict[str, Any], said: str, fix: str
) -> None:
    with pytest.raises(
        InputError, match=f"only the native library trains adapters beside a quantised base.*{said}"
    ) as raised:
        check(Job(small_preset(**PRESET, **changes), None, tmp_path, load=bases["int4"]))
    assert fix in str(raised.value.fix)
    assert f"ckpt convert {bases['int4']}" in str(raised.value.fix)


def test_without_the_library_the_base_is_refused_with_the_command_that_builds_it(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_choice, "find_library", lambda: Found(None, "it is not built"))
    with pytest.raises(InputError, match=r"it cannot here: no native library \(it is not built\)") as raised:
        check(Job(small_preset(**PRESET), None, tmp_path, load=bases["int4"]))
    assert "spark13b native build" in str(raised.value.fix)


def test_a_preset_for_quantised_weights_refuses_floats(there: None, bases: dict[str, Path], tmp_path: Path) -> None:
    preset = small_preset(**PRESET, model__weight_bits=4)
    with pytest.raises(InputError, match="the preset is for weights of 4 bits, and these are not quantised"):
        check(Job(preset, None, tmp_path, load=bases["float.ckpt"]))


def test_the_plan_counts_the_file_as_it_is_and_room_for_a_layer_or_the_embedding(
    there: None, bases: dict[str, Path], tmp_path: Path
) -> None:
    preset = small_preset(**PRESET)
    with open_checkpoint(bases["int4"]) as base:
        assert isinstance(base, QuantizedCheckpoint)
        found = RoundedBase.of(base, preset.model)
    assert found == RoundedBase.of(base, preset.model)
    assert found.types == (2, *[3] * 7)
    adapters = sum(4 * np.prod(shape) for shape in adapter_shapes(preset.model, preset.lora).values())
    memory = check(Job(preset, None, tmp_path, load=bases["int4"])).memory
    assert memory.weights == base.stored.nbytes + adapters
    floats = training_memory(preset, 32)
    table = 4 * preset.model.vocab_size * 64  # more than a layer's
    assert memory.activations == floats.activations + table
    usual = RoundedBase.usual(preset.model.model_copy(update={"weight_bits": 4}))
    assert usual.types == found.types
