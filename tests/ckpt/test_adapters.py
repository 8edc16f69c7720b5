"""Adapter files, adapters inside the original's checkpoints, and folding them into the base."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from spark13b.ckpt import open_checkpoint, to_float32, write_checkpoint
from spark13b.ckpt.adapters import (
    ADAPTERS,
    AdapterCard,
    Adapters,
    Parts,
    card_of,
    open_adapters,
    parts_of,
    write_adapters,
)
from spark13b.ckpt.casting import with_dtype
from spark13b.ckpt.layout import Layout
from spark13b.ckpt.merging import merged
from spark13b.ckpt.quantizing import Wanted, quantize_checkpoint
from spark13b.ckpt.slices import write_slices
from spark13b.config import SparkConfig
from spark13b.config.sections import LoraConfig
from spark13b.errors import InputError
from spark13b.model.names import adapter_shapes

LORA = LoraConfig(rank=3, alpha=128, targets="q_proj|out_proj|fc0|fc2")
QUERY = "transformer.transformer.layers.1.attention.q_proj"


@pytest.fixture(scope="module")
def arrays(config: SparkConfig) -> dict[str, np.ndarray]:
    """Adapters as training leaves them, B not zero any more."""
    rng = np.random.default_rng(1)
    shapes = adapter_shapes(config, LORA)
    return {name: rng.normal(size=shape, scale=0.02).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def file(tmp_path: Path, weights: Path, config: SparkConfig, arrays: dict) -> Path:
    """An adapter file beside `weights`."""
    with open_checkpoint(weights) as base:
        write_adapters(tmp_path / ADAPTERS, arrays, card_of(config, LORA, base))
    return tmp_path / ADAPTERS


def original(path: Path, golden_weights: dict, arrays: dict, prefix: str = "", capitals: bool = False) -> Path:
    """A checkpoint as MindFormers saves a LoRA run: base, adapters, Adam's state and counters together."""
    named = {
        prefix + (re.sub("lora_([ab])$", lambda found: f"lora_{found[1].upper()}", name) if capitals else name): array
        for name, array in arrays.items()
    }
    state = {f"adam_{one}.{name}": np.ones_like(array) for name, array in named.items() for one in "mv"}
    counters = {"global_step": np.array(7, np.int32), "scale_sense": np.array(1.0, np.float32)}
    write_checkpoint(path, {**golden_weights, **named, **state, **counters}, _format(path))
    return path


def _format(path: Path) -> str:
    return "safetensors" if path.suffix == ".safetensors" else "ckpt"


def content(adapters: Adapters) -> dict[str, bytes]:
    return {name: adapters.tensors[name].tobytes() for name in adapters.tensors}


def test_an_adapter_file_tells_what_it_is_and_is_small(
    file: Path, weights: Path, config: SparkConfig, arrays: dict
) -> None:
    with open_adapters(file) as adapters:
        assert adapters.lora == LORA
        assert adapters.card.base is not None and adapters.card.base.differences(config) == []
        assert adapters.card.base_path == str(weights)
        assert content(adapters) == {name: array.tobytes() for name, array in arrays.items()}
        assert all(map(adapters.tensors.has_checksum, adapters.tensors))
    assert file.stat().st_size < sum(array.nbytes for array in arrays.values()) + 400 * len(arrays)
    from safetensors.numpy import load_file

    assert set(load_file(file)) == set(arrays)


def test_a_flipped_bit_in_an_adapter_is_found(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with open_adapters(file) as adapters, pytest.raises(InputError, match="does not match its checksum"):
        content(adapters)


@pytest.mark.parametrize(
    ("name", "prefix", "capitals"),
    [("rank_0.ckpt", "", False), ("rank_0.safetensors", "", True), ("network.ckpt", "network.", False)],
)
def test_adapters_are_cut_out_of_the_originals_checkpoints(
    tmp_path: Path, golden_weights: dict, arrays: dict, name: str, prefix: str, capitals: bool
) -> None:
    path = original(tmp_path / name, golden_weights, arrays, prefix, capitals)
    with open_adapters(path, alpha=128) as adapters:
        assert adapters.lora == LORA
        assert adapters.card.base is not None and adapters.card.base.hidden_size == 64
        assert content(adapters) == {name: array.tobytes() for name, array in arrays.items()}
        write_adapters(tmp_path / "cut.safetensors", adapters.tensors, adapters.card)
    with open_adapters(tmp_path / "cut.safetensors") as cut:
        assert cut.lora == LORA and content(cut) == {name: array.tobytes() for name, array in arrays.items()}


def test_adapters_are_cut_out_of_slices(tmp_path: Path, golden_weights: dict, arrays: dict) -> None:
    path = original(tmp_path / "all.ckpt", golden_weights, arrays)
    with open_checkpoint(path) as whole:
        write_slices(tmp_path / "slices", whole, Layout(data_parallel=2, model_parallel=2, optimizer_shard=True))
    with open_adapters(tmp_path / "slices", alpha=128) as adapters:
        assert content(adapters) == {name: array.tobytes() for name, array in arrays.items()}


def test_what_a_file_does_not_say_must_be_told(tmp_path: Path, golden_weights: dict, arrays: dict, file: Path) -> None:
    path = original(tmp_path / "all.ckpt", golden_weights, arrays)
    with pytest.raises(InputError, match=r"does not say the alpha of its adapters of rank 3[\s\S]*extract-lora"):
        open_adapters(path)
    with pytest.raises(InputError, match="trained with alpha 128, not 16"):
        open_adapters(file, alpha=16)
    with pytest.raises(InputError, match="holds no LoRA adapters"):
        open_adapters(tmp_path / "weights.ckpt")
    odd = {f"{QUERY}.mindpet_delta_lora_a": np.ones((4, 64), np.float32)}
    with pytest.raises(InputError, match=r"several ranks, \[3, 4\]"):
        open_adapters(original(tmp_path / "odd.ckpt", golden_weights, {**arrays, **odd}), alpha=1)


def test_a_card_of_another_version_is_refused(tmp_path: Path, arrays: dict) -> None:
    text = json.dumps({"version": 2, "lora": {"rank": 3}})
    write_checkpoint(tmp_path / "new.safetensors", arrays, "safetensors", metadata={"lora": text})
    with pytest.raises(InputError, match=r"cannot be read: version"):
        open_adapters(tmp_path / "new.safetensors")


def test_folding_adds_b_a_alpha_over_rank_and_changes_nothing_else(
    file: Path, weights: Path, golden_weights: dict, arrays: dict
) -> None:
    with merged(open_checkpoint(weights), open_adapters(file)) as result:
        assert list(result) == list(golden_weights)
        for name, before in golden_weights.items():
            linear = name.removesuffix(".weight")
            after = result[name]
            assert after.tobytes() == b"".join(result.pieces(name))
            if f"{linear}.mindpet_delta_lora_a" not in arrays:
                assert after.tobytes() == before.tobytes()
                continue
            a, b = (arrays[f"{linear}.mindpet_delta_lora_{one}"].astype(np.float64) for one in "ab")
            np.testing.assert_allclose(after, before + b @ a * (128 / 3), atol=1e-6)


def test_sums_are_float32_and_rounded_once_to_the_bases_format(file: Path, weights: Path, tmp_path: Path) -> None:
    with with_dtype(open_checkpoint(weights), np.dtype(ml_dtypes.bfloat16)) as narrow:
        write_checkpoint(tmp_path / "narrow.ckpt", narrow)
    with open_checkpoint(tmp_path / "narrow.ckpt") as base, open_adapters(file) as adapters:
        wide = to_float32(base[f"{QUERY}.weight"])
        a, b = (adapters.tensors[f"{QUERY}.mindpet_delta_lora_{one}"] for one in "ab")
        expected = (wide + (b * np.float32(128 / 3)) @ a).astype(ml_dtypes.bfloat16)
        result = merged(base, adapters)
        assert result.dtypes() == base.dtypes()
        assert result[f"{QUERY}.weight"].tobytes() == expected.tobytes()
        wide_again = merged(base, adapters, np.dtype(np.float32))[f"{QUERY}.weight"]
        np.testing.assert_allclose(wide_again, wide + (b * np.float32(128 / 3)) @ a, atol=1e-6)


def test_base_and_adapters_of_one_file_are_folded(
    tmp_path: Path, golden_weights: dict, arrays: dict, file: Path, weights: Path
) -> None:
    path = original(tmp_path / "all.ckpt", golden_weights, arrays)
    with (
        merged(open_checkpoint(path), open_adapters(path, alpha=128)) as from_one,
        merged(open_checkpoint(weights), open_adapters(file)) as from_two,
    ):
        assert list(from_one) == list(from_two)
        assert all(from_one[name].tobytes() == from_two[name].tobytes() for name in from_two)


def test_adapters_that_do_not_fit_are_refused_with_their_names(tmp_path: Path, weights: Path, arrays: dict) -> None:
    missing = {name: array for name, array in arrays.items() if name != f"{QUERY}.mindpet_delta_lora_b"}
    wide = {**arrays, f"{QUERY}.mindpet_delta_lora_b": np.ones((65, 3), np.float32)}
    card = AdapterCard(lora=LORA)
    cases = [
        (missing, rf"1 missing:\s+{QUERY}.mindpet_delta_lora_b"),
        (wide, rf"{QUERY}.mindpet_delta_lora_b is 65x3, the model's is 64x3"),
    ]
    with open_checkpoint(weights) as base:
        for number, (wrong, said) in enumerate(cases):
            write_adapters(tmp_path / f"{number}.safetensors", wrong, card)
            with open_adapters(tmp_path / f"{number}.safetensors") as adapters, pytest.raises(InputError, match=said):
                merged(base, adapters)
    alone = tmp_path / "0.safetensors"
    with open_adapters(alone) as adapters, pytest.raises(InputError, match="no complete Spark model"):
        merged(open_checkpoint(alone), adapters)


def test_another_base_of_the_same_shape_is_doubted(
    tmp_path: Path, file: Path, weights: Path, golden_weights: dict, config: SparkConfig
) -> None:
    norm = "transformer.transformer.layernorm.gamma"
    write_checkpoint(tmp_path / "other.ckpt", {**golden_weights, norm: golden_weights[norm] * 1.1})
    with (
        open_adapters(file) as adapters,
        open_checkpoint(weights) as base,
        open_checkpoint(tmp_path / "other.ckpt") as other,
    ):
        assert adapters.doubt(base) is None
        assert "is not the base" in str(adapters.doubt(other))
        with pytest.raises(InputError, match="num_heads 8 instead of 4"):
            adapters.check_base(config.model_copy(update={"num_heads": 8}))


@pytest.mark.parametrize("trained", ["weights", "int8"])
def test_adapters_beside_the_same_model_rounded_otherwise_are_doubted(
    tmp_path: Path, weights: Path, arrays: dict, config: SparkConfig, trained: str
) -> None:
    """The hash of the norms is the same, since these are not rounded."""
    paths = {"weights": weights, "int8": tmp_path / "int8.safetensors"}
    with open_checkpoint(weights) as base:
        quantize_checkpoint(base, paths["int8"], Wanted(8, 16, 32))
    with open_checkpoint(paths[trained]) as base:
        card = card_of(config, LORA, base)
    write_adapters(tmp_path / ADAPTERS, arrays, card)
    kept = {"weights": "float", "int8": "int8/32"}
    for name, path in paths.items():
        with Parts(path, tmp_path / ADAPTERS).open(config) as parts:
            differ = f"was trained beside {kept[trained]} weights, and those of {path} are {kept[name]}: answers may"
            assert (differ in (parts.doubt() or "")) == (name != trained)
    # as cards were before they told it
    told = json.loads(card.model_dump_json())
    del told["base_weights"]
    write_checkpoint(tmp_path / "old.safetensors", arrays, "safetensors", metadata={"lora": json.dumps(told)})
    for path in paths.values():
        with Parts(path, tmp_path / "old.safetensors").open(config) as parts:
            assert parts.doubt() is None


def test_load_and_adapter_name_a_base_and_adapters(tmp_path: Path, file: Path, weights: Path) -> None:
    assert (parts_of(weights).base, parts_of(weights).adapters) == (weights, None)
    assert parts_of(weights, file).adapters == file
    assert (parts_of(file).base, parts_of(file).adapters) == (weights, file)
    with pytest.raises(InputError, match="nothing holds the base"):
        parts_of(file, file)
    weights.unlink()
    with pytest.raises(InputError, match=r"the base model of the adapters is gone[\s\S]*--load BASE --adapter"):
        parts_of(file)


def test_the_folded_model_says_what_the_live_adapters_say(file: Path, weights: Path, config: SparkConfig) -> None:
    from spark13b.model.causal_lm import SparkForCausalLM
    from spark13b.model.transformer import Setup

    ids = np.random.default_rng(2).integers(0, config.vocab_size, (1, 16))
    with open_checkpoint(weights) as base, open_adapters(file) as adapters:
        model = SparkForCausalLM(config, seed=None, setup=Setup(lora=adapters.lora))
        model.load_state(base)
        without = model.logits(ids)  # B is still 0
        model.load_adapters(adapters.tensors)
        live = model.logits(ids)
        model.load_state(merged(base, adapters))
        model.load_adapters({name: np.zeros(shape) for name, shape in adapters.tensors.shapes().items()})
        folded = model.logits(ids)
    np.testing.assert_allclose(folded, live, rtol=1e-5, atol=1e-5)
    assert np.abs(live - without).max() > 0.1
