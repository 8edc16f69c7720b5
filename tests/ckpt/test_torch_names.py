"""torch2ms and ms2torch against the mapping of SPEC section 5, written out a second time here with torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ckpt_samples import LAYERS, C, F, same_bytes, torch_state

from spark13b.ckpt import expected_shapes, open_checkpoint, write_checkpoint
from spark13b.ckpt.torch_names import from_torch, to_torch
from spark13b.config import SparkConfig
from spark13b.errors import InputError

torch = pytest.importorskip("torch", reason="compared with torch where it is installed: pip install -e .[torch]")


def _mapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The mapping by the words of the SPEC, whole tensors at once."""
    out = {}
    for name, value in state.items():
        if name.endswith("_extra_state"):
            continue
        if name == "embedding.word_embeddings.weight":
            out["transformer.embedding.word_embeddings.embedding_table"] = value
        elif "norm." in name:
            out["transformer." + name.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta")] = value
        elif ".fc1." in name:
            out["transformer." + name.replace("fc1", "fc0")] = value[::2]
            out["transformer." + name] = value[1::2]
        elif ".q_k_v_" in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                out["transformer." + name.replace("q_k_v", letter)] = part
        else:
            out["transformer." + name] = value
    return out


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_weights_become_mindspore_s(
    nested: bool, dtype: torch.dtype, tmp_path: Path, config: SparkConfig
) -> None:
    state = torch_state(dtype)
    torch.save({"model": state} if nested else state, tmp_path / "x.pt")
    expected = _mapped(state)
    with open_checkpoint(tmp_path / "x.pt") as source, from_torch(source) as converted:
        assert set(converted) == set(expected) == set(expected_shapes(config))
        assert converted.shapes() == {name: expected_shapes(config)[name] for name in converted}
        for name, tensor in expected.items():
            assert np.array_equal(converted[name].astype(np.float32), tensor.float().numpy()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_to_mindspore_to_torch_is_bit_exact(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: value for name, value in torch_state(dtype).items() if value is not None}
    torch.save(state, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as a, from_torch(a) as converted:
        write_checkpoint(tmp_path / "b.ckpt", converted)
    with open_checkpoint(tmp_path / "b.ckpt") as b, to_torch(b) as back:
        write_checkpoint(tmp_path / "c.pt", back, "torch")
    loaded = torch.load(tmp_path / "c.pt", weights_only=True)
    assert set(loaded) == set(state)
    for name, tensor in state.items():
        assert loaded[name].dtype == dtype and torch.equal(loaded[name], tensor), name


def test_mindspore_to_torch_to_mindspore_is_bit_exact(tmp_path: Path, weights: Path, golden_weights: dict) -> None:
    with open_checkpoint(weights) as source, to_torch(source) as converted:
        write_checkpoint(tmp_path / "x.pt", converted, "torch")
    with open_checkpoint(tmp_path / "x.pt") as source, from_torch(source) as back:
        assert set(back) == set(golden_weights)
        assert all(same_bytes(np.ascontiguousarray(back[name]), array) for name, array in golden_weights.items())


def test_rows_are_interleaved_and_fused_as_the_original_has_them(tmp_path: Path, weights: Path) -> None:
    with open_checkpoint(weights) as source, to_torch(source) as converted:
        layer = "transformer.transformer.layers.1."
        gated = converted["transformer.layers.1.mlp.fc1.weight"]
        assert gated.shape == (F, C)
        assert np.array_equal(gated[6], source[f"{layer}mlp.fc0.weight"][3])
        assert np.array_equal(gated[7], source[f"{layer}mlp.fc1.weight"][3])
        fused = converted["transformer.layers.1.attention.q_k_v_proj.bias"]
        assert np.array_equal(fused[C : 2 * C], source[f"{layer}attention.k_proj.bias"])


def test_masks_caches_adapters_and_training_state_stay_out_of_torch_files(tmp_path: Path, golden_weights: dict) -> None:
    layer = "transformer.transformer.layers.0.attention."
    extra = {
        "transformer.slice_sparse_mask": np.zeros((4, 4), np.float16),
        f"{layer}key_past": np.zeros((4, 4), np.float16),
        f"{layer}q_proj.mindpet_delta_lora_a": np.zeros((3, C), np.float32),
        f"adam_m.{layer}q_proj.weight": np.zeros((C, C), np.float32),
        "global_step": np.array(7, np.int32),
    }
    write_checkpoint(tmp_path / "x.ckpt", golden_weights | extra)
    with open_checkpoint(tmp_path / "x.ckpt") as source, to_torch(source) as converted:
        assert len(converted) == 1 + LAYERS * 12 + 2
        assert not [name for name in converted if "lora" in name or "past" in name or "adam" in name]


def test_matrices_that_cannot_be_cut_or_joined_are_named(tmp_path: Path, golden_weights: dict) -> None:
    torch.save({"transformer.layers.0.attention.q_k_v_proj.bias": torch.zeros(7)}, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt") as source, pytest.raises(InputError, match="7 rows, not a multiple of 3"):
        from_torch(source)
    incomplete = dict(golden_weights)
    del incomplete["transformer.transformer.layers.1.attention.k_proj.bias"]
    write_checkpoint(tmp_path / "x.ckpt", incomplete)
    with open_checkpoint(tmp_path / "x.ckpt") as source, pytest.raises(InputError, match=r"k_proj\.bias' is missing"):
        to_torch(source)


def test_names_that_are_mindspore_s_already_are_not_converted_twice(weights: Path) -> None:
    with open_checkpoint(weights) as source, pytest.raises(InputError, match="MindSpore's already"):
        from_torch(source)
