"""Number formats: rounding as torch rounds, the float32 exceptions, overflow, and what is never converted."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from spark13b.ckpt import open_checkpoint, write_checkpoint
from spark13b.ckpt.casting import cast, target_dtype, with_dtype
from spark13b.ckpt.dtypes import BFLOAT16, FLOAT16, FLOAT32, named
from spark13b.errors import InputError

torch = pytest.importorskip("torch", reason="compared with torch where it is installed: pip install -e .[torch]")

TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
EMBEDDING = "transformer.embedding.word_embeddings.embedding_table"
NORM = "transformer.transformer.layers.0.layer_norm.gamma"
LINEAR = "transformer.transformer.layers.0.mlp.fc0.weight"


@pytest.mark.parametrize("target", TORCH)
@pytest.mark.parametrize("source", TORCH)
def test_casting_equals_torch_bit_for_bit(source: str, target: str) -> None:
    rng = np.random.default_rng(0)
    numbers = np.concatenate([rng.normal(size=2_500_000), [0.0, -0.0, 1e-41, -3e-8, 6e-8, np.inf, -np.inf]])
    start = torch.tensor(numbers, dtype=torch.float32).to(TORCH[source])
    array = start.view(torch.int16).numpy().view(named(source)) if start.itemsize == 2 else start.numpy()
    ours, overflows = cast(array, named(target))
    theirs = start.to(TORCH[target])
    assert overflows == 0 and ours.dtype == named(target)
    bits = torch.int16 if theirs.itemsize == 2 else torch.int32
    assert ours.tobytes() == theirs.view(bits).numpy().tobytes()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Weights, a norm, an embedding, an adapter and training state, float32."""
    tensors = {
        EMBEDDING: np.ones((4, 2), np.float32),
        NORM: np.ones(2, np.float32),
        LINEAR: np.full((3, 2), 1.001, np.float32),
        LINEAR.replace("weight", "mindpet_delta_lora_a"): np.ones((1, 2), np.float32),
        f"adam_m.{LINEAR}": np.full((3, 2), 1.001, np.float32),
        "global_step": np.array(300001, np.int32),
        "learning_rate": np.array(3e-5, np.float32),
    }
    write_checkpoint(tmp_path / "mixed.ckpt", tensors)
    return tmp_path / "mixed.ckpt"


@pytest.mark.parametrize("target", ["bfloat16", "float16"])
def test_embedding_norms_and_training_state_keep_float32(target: str, mixed: Path) -> None:
    with open_checkpoint(mixed) as source, with_dtype(source, target_dtype(target)) as converted:
        dtypes = {name: dtype.name for name, dtype in converted.dtypes().items()}
        assert dtypes[LINEAR] == dtypes[LINEAR.replace("weight", "mindpet_delta_lora_a")] == target
        assert {dtypes[name] for name in (EMBEDDING, NORM, f"adam_m.{LINEAR}", "learning_rate")} == {"float32"}
        assert converted["global_step"] == 300001
        assert np.array_equal(converted[f"adam_m.{LINEAR}"], source[f"adam_m.{LINEAR}"])
    with open_checkpoint(mixed) as source:
        everything = with_dtype(source, target_dtype(target), cast_embedding=True, cast_norms=True)
        assert everything.infos[EMBEDDING].dtype.name == everything.infos[NORM].dtype.name == target


def test_an_embedding_in_half_precision_is_widened(tmp_path: Path) -> None:
    half = np.arange(8).reshape(4, 2).astype(ml_dtypes.bfloat16)
    write_checkpoint(tmp_path / "x.ckpt", {EMBEDDING: half, LINEAR: half})
    with open_checkpoint(tmp_path / "x.ckpt") as source, with_dtype(source, FLOAT16) as converted:
        assert converted[EMBEDDING].dtype == FLOAT32 and converted[LINEAR].dtype == FLOAT16
        assert np.array_equal(converted[EMBEDDING], half.astype(np.float32))


@pytest.mark.parametrize(("number", "fits"), [(65504.0, True), (65505.0, False), (-70000.0, False), (np.inf, True)])
def test_an_overflow_is_an_error_that_names_the_tensor(number: float, fits: bool, tmp_path: Path) -> None:
    array = np.ones((2000, 1000), np.float32)
    array[1999, 7] = number
    array[0, 0] = np.nan
    write_checkpoint(tmp_path / "x.ckpt", {LINEAR: array})
    with open_checkpoint(tmp_path / "x.ckpt") as source:
        strict, lax = with_dtype(source, FLOAT16), with_dtype(source, FLOAT16, allow_overflow=True)
        if fits:
            assert strict[LINEAR][1999, 7] == number
        else:
            with pytest.raises(InputError, match=rf"1 numbers of tensor '{LINEAR}' are beyond 65504") as caught:
                strict[LINEAR]
            assert "--allow-overflow" in caught.value.message()
        assert np.isnan(lax[LINEAR][0, 0])
        assert lax[LINEAR][1999, 7] == {65505.0: 65504, -70000.0: -np.inf}.get(number, number)


def test_bfloat16_overflows_only_at_the_end_of_float32() -> None:
    largest = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    assert cast(np.array([largest, -largest], np.float32), BFLOAT16)[1] == 0
    assert cast(np.array([np.finfo(np.float32).max], np.float32), BFLOAT16)[1] == 1
    assert cast(np.array([1e300], np.float64), FLOAT32)[1] == 1


def test_other_formats_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be converted to 'int8'"):
        target_dtype("int8")
