"""Answers of a quantised checkpoint: recognised by itself, mapped into memory, the numbers of what its weights are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infer.small_run import write_small_run
from model.numpy_model import NumpyModel
from spark13b.ckpt import open_checkpoint, write_checkpoint
from spark13b.ckpt.adapters import AdapterCard, write_adapters
from spark13b.ckpt.quantized import QuantizedCheckpoint
from spark13b.ckpt.quantizing import Wanted, quantize_checkpoint
from spark13b.config import load_preset
from spark13b.config.sections import LoraConfig
from spark13b.errors import InputError
from spark13b.infer import loading
from spark13b.infer.decoding import READING
from spark13b.infer.native_decoder import make_decoder
from spark13b.infer.native_model import NativeModel
from spark13b.infer.session import Session, find_model
from spark13b.model.names import adapter_shapes
from spark13b.native.library import Found, Library
from spark13b.native.matrix import Matrix
from spark13b.run_folder import weights_of

SHAPE = {"model__hidden_size": 128, "model__ffn_hidden_size": 512, "model__vocab_size": 8000, "model__num_layers": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its attention is not as sharp as of random weights: there roundings choose other tokens."""
    folder = write_small_run(tmp_path_factory.mktemp("quantized") / "run", **SHAPE)
    with open_checkpoint(weights_of(folder)) as source:
        arrays = {name: array * np.float32(0.1 if "q_proj" in name else 1) for name, array in source.items()}
    write_checkpoint(weights_of(folder) / "model.safetensors", arrays, "safetensors", force=True)
    return folder


@pytest.fixture(scope="module", params=[8, 4])
def quantized(request: pytest.FixtureRequest, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("int") / "model"
    with open_checkpoint(weights_of(run)) as source:
        quantize_checkpoint(source, target, Wanted(request.param, 8))
    return target


def load(run: Path, quantized: Path, *assignments: str) -> Session:
    return Session(find_model(quantized, str(run / "preset.yaml"), run / "tokenizer", {}, assignments))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_prompts_and_steps_have_the_logits_of_what_the_weights_stand_for(
    run: Path, quantized: Path, kind: str, native_library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs are rounded to 16 bits where the processor multiplies whole numbers.

    With bfloat16 caches are rounded, too, and so may be products: 8 bits of the logits' size.
    """
    monkeypatch.setattr(loading, "find_library", lambda: Found(native_library, ""))
    model = load(run, quantized, f"model.compute_type={kind}").model
    assert isinstance(model, NativeModel)
    matrices = [one for one in model.weights().values() if isinstance(one, Matrix)]
    assert len(matrices) == 8
    assert not any(one.array.flags.owndata or one.array.flags.writeable for one in matrices)
    with open_checkpoint(quantized) as stored:
        assert isinstance(stored, QuantizedCheckpoint)
        twin = NumpyModel(model.config, {name: array.astype(np.float64) for name, array in stored.items()})
    ids = np.random.default_rng(0).integers(0, 8000, 90).tolist()
    expected = twin.logits(np.array([ids]))[0]
    decoder = make_decoder(model, 64, 0, 40)
    tolerance = 1e-2 if kind == "float32" else 0.02 * np.abs(expected).max()
    for start in (0, 40):
        np.testing.assert_allclose(decoder.read(ids[start : start + 40], start), expected[start + 39], atol=tolerance)
    for at in range(80, 90):
        np.testing.assert_allclose(decoder.step([READING], [ids[at]], [at])[0], expected[at], atol=tolerance)


def test_without_the_library_mindspore_computes_with_what_the_weights_stand_for(
    run: Path, quantized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "find_library", lambda: Found(None, "it is not built"))
    session = load(run, quantized)
    assert session.doubt is not None
    assert session.doubt.endswith("its weights become float32: only the native library reads them")
    with open_checkpoint(quantized) as stored:
        for name, parameter in session.model.weights().items():
            np.testing.assert_array_equal(parameter.asnumpy(), stored[name])


def test_a_preset_of_quantised_weights_refuses_others_with_the_command_that_makes_them(run: Path) -> None:
    with pytest.raises(InputError, match="the preset is for weights of 4 bits, and these are not quantised") as raised:
        load(run, run, "model.weight_bits=4")
    assert f"ckpt quantize {weights_of(run) / 'model.safetensors'} DST --bits 4" in str(raised.value.fix)


def test_adapters_are_computed_beside_the_quantised_weights_and_are_not_folded_into_them(
    run: Path, quantized: Path, native_library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loading, "find_library", lambda: Found(native_library, ""))
    lora = LoraConfig(rank=3, alpha=6.0)
    shapes, rng = adapter_shapes(load_preset(str(run / "preset.yaml")).model, lora), np.random.default_rng(2)
    arrays = {name: 0.05 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    write_adapters(tmp_path / "adapters.safetensors", arrays, AdapterCard(lora=lora))

    found = find_model(
        quantized, str(run / "preset.yaml"), run / "tokenizer", {}, [], tmp_path / "adapters.safetensors"
    )
    model = Session(found).model
    assert isinstance(model, NativeModel)
    with open_checkpoint(quantized) as stored:
        whole = {name: array.astype(np.float64) for name, array in stored.items()}
    for name in shapes:
        if name.endswith("_b"):
            whole[name.replace("mindpet_delta_lora_b", "weight")] += 2.0 * arrays[name] @ arrays[f"{name[:-1]}a"]
    ids = rng.integers(0, 8000, 41).tolist()
    expected = NumpyModel(model.config, whole).logits(np.array([ids]))[0]
    decoder = make_decoder(model, 64, 0, 40)
    np.testing.assert_allclose(decoder.read(ids[:40], 0), expected[39], atol=5e-3)
    np.testing.assert_allclose(decoder.step([READING], [ids[40]], [40])[0], expected[40], atol=2e-2)

    with pytest.raises(InputError, match="adapters cannot be added to quantised weights") as raised:
        Session(found, fold=True)
    assert "leave out --merge-adapter" in str(raised.value.fix)
