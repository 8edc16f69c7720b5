"""What a plan of answering counts beside what is really held: weights, adapters, and who computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infer.small_run import write_small_run
from spark13b.ckpt import open_checkpoint, write_checkpoint
from spark13b.ckpt.adapters import ADAPTERS, card_of, write_adapters
from spark13b.ckpt.quantizing import Wanted, quantize_checkpoint
from spark13b.ckpt.torch_names import to_torch
from spark13b.config import Preset, load_preset
from spark13b.config.sections import LoraConfig
from spark13b.errors import InputError
from spark13b.infer import loading
from spark13b.infer.native_model import NativeModel
from spark13b.infer.session import FoundModel, Session, find_model
from spark13b.model import native_choice
from spark13b.model.causal_lm import SparkForCausalLM
from spark13b.model.names import adapter_shapes
from spark13b.native.library import Found, Library
from spark13b.native.matrix import Matrix
from spark13b.run_folder import weights_of
from spark13b.train.answering_files import AnsweringFiles, answering_files
from spark13b.train.answering_memory import answering_memory
from spark13b.train.plan import check_answering, plan_answering

LORA = LoraConfig(rank=3, alpha=6.0, targets="q_proj|fc2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    run = write_small_run(folder / "run", model__num_layers=1)
    model, rng = load_preset(str(run / "preset.yaml")).model, np.random.default_rng(1)
    with open_checkpoint(weights_of(run)) as base:
        quantize_checkpoint(base, folder / "int4.safetensors", Wanted(4, 8, 32))
        halves = {name: base[name].astype(np.float16) for name in base}
        write_checkpoint(folder / "halves.safetensors", halves, "safetensors")
        write_checkpoint(folder / "halves.bin", to_torch(open_checkpoint(folder / "halves.safetensors")), "torch")
        arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in adapter_shapes(model, LORA).items()}
        write_adapters(folder / ADAPTERS, arrays, card_of(model, LORA, base))
    return run


@pytest.fixture
def there(native_library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (native_choice, loading):
        monkeypatch.setattr(module, "find_library", lambda: Found(native_library, ""))


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (native_choice, loading):
        monkeypatch.setattr(module, "find_library", lambda: Found(None, "it is not built"))


def find(run: Path, weights: Path | None = None, **changes: str) -> tuple[FoundModel, AnsweringFiles]:
    """The model with its adapters, and what a plan knows of both."""
    adapter, assignments = run.parent / ADAPTERS, [f"model.{key}={value}" for key, value in changes.items()]
    found = find_model(weights or run, str(run / "preset.yaml"), run / "tokenizer", {}, assignments, adapter)
    return found, answering_files(weights or run, adapter, found.preset.model)


def held(array: np.ndarray | Matrix) -> int:
    if not isinstance(array, Matrix):
        return array.nbytes
    return array.array.nbytes + (0 if array.scales is None else array.scales.nbytes)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("weights", [None, "int4.safetensors", "halves.safetensors", "halves.bin"])
def test_the_native_library_holds_what_was_planned_of_weights_and_adapters(
    run: Path, there: None, weights: str | None, kind: str
) -> None:
    found, files = find(run, None if weights is None else run.parent / weights, compute_type=kind)
    model = Session(found).model
    assert isinstance(model, NativeModel)
    adapters = [array for pair in model.native._pairs if pair is not None for array in pair]
    assert len(adapters) == 4
    planned = answering_memory(found.preset, files=files).weights
    assert planned == sum(map(held, model.weights().values())) + sum(array.nbytes for array in adapters)


def test_adapters_stay_float32_beside_weights_of_16_bits(run: Path, there: None) -> None:
    found, files = find(run, compute_type="bfloat16")
    model = Session(found).model
    assert isinstance(model, NativeModel)
    beside = sum(array.nbytes for pair in model.native._pairs if pair is not None for array in pair)
    weights = answering_memory(found.preset, files=AnsweringFiles(files.weights)).weights
    assert answering_memory(found.preset, files=files).weights - weights == beside == 4 * 3 * (3 * 32 + 32)
    matrices = sum(array.nbytes for array in model.weights().values() if array.dtype != np.float32)
    assert matrices < weights < matrices + 4 * 8000 * 32 + 10_000  # with the embedding, and vectors


def test_mindspore_holds_what_was_planned_of_weights_and_adapters(run: Path, missing: None) -> None:
    found, files = find(run, run.parent / "int4.safetensors")
    assert files.rounded and files.weights is not None
    model = Session(found).model
    assert isinstance(model, SparkForCausalLM)
    parameters = [*model.weights().values(), *model.adapters().values()]
    planned = answering_memory(found.preset, files=files)
    assert planned.weights == sum(parameter.asnumpy().nbytes for parameter in parameters)
    assert planned.weights > 2 * files.weights


def test_adapters_that_are_added_to_the_weights_take_nothing_more(run: Path) -> None:
    found, files = find(run)
    folded = answering_files(run, run.parent / ADAPTERS, found.preset.model, fold=True)
    assert (files.lora, folded) == (LORA, AnsweringFiles(files.weights))
    with pytest.raises(InputError, match="adapters cannot be added to quantised weights"):
        answering_files(run.parent / "int4.safetensors", run.parent / ADAPTERS, found.preset.model, fold=True)


def test_files_that_do_not_go_together_have_no_plan(run: Path) -> None:
    model = load_preset(str(run / "preset.yaml")).model
    with pytest.raises(InputError, match="the preset is for weights of 4 bits, and these are not quantised"):
        answering_files(run, None, model.model_copy(update={"weight_bits": 4}))
    with pytest.raises(InputError, match="the adapters belong to another model: num_layers 2 instead of 1"):
        answering_files(None, run.parent / ADAPTERS, model.model_copy(update={"num_layers": 2}))


def test_of_a_divided_model_each_device_has_its_part_of_the_adapters() -> None:
    """A of fc2 is cut by columns, B of fc1 by rows; the others are whole."""
    files = AnsweringFiles(lora=LoraConfig(rank=4, targets="fc[12]"))
    values = load_preset("800-infer")
    shared = values.parallel.model_parallel
    beside = answering_memory(values, files=files).weights - answering_memory(values).weights
    cut, whole = 4 * 14336 // shared + 4 * 14336 // shared, 4 * 5120 + 4 * 5120
    assert (shared > 1, beside) == (True, 4 * 40 * (cut + whole))


def thirteen(**changes: str) -> Preset:
    return load_preset("cpu-13b-int4-infer", assignments=[f"model.{key}={value}" for key, value in changes.items()])


def test_without_the_library_13b_of_rounded_weights_is_refused_with_the_bytes_of_its_floats(missing: None) -> None:
    values = thirteen(compute_type="float32")
    memory = answering_memory(values)
    assert memory.weights > 13e9 * 4 - 2 * 60000 * 5120
    limited = values.model_copy(update={"machine": values.machine.model_copy(update={"max_device_memory_gb": 24})})
    for refused in (plan_answering, lambda preset: check_answering(preset, 1)):
        said = r"need 49.*; computes: MindSpore's operators: no native library \(it is not built\); quantised weights "
        with pytest.raises(InputError, match=said + "become float32") as raised:
            refused(limited)
        assert "spark13b native build" in str(raised.value.fix)


def test_without_the_library_bfloat16_is_refused_as_loading_would(missing: None) -> None:
    for refused in (plan_answering, lambda preset: check_answering(preset, 1)):
        with pytest.raises(InputError, match="MindSpore has no bfloat16 matrix products on a CPU"):
            refused(thirteen())


def test_a_plan_counts_the_process_of_what_computes(run: Path, native_library: Library) -> None:
    preset, totals = load_preset(str(run / "preset.yaml")), {}
    for library in (native_library, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native_choice, "find_library", lambda found=library: Found(found, "it is not built"))
            totals[library] = answering_memory(preset).runtime
    assert totals[None] > 3 * totals[native_library]
