"""`spark13b convert` as a person runs it: exit codes, what is said and where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import Run

torch = pytest.importorskip("torch", reason="compared with torch where it is installed: pip install -e .[torch]")


def state(hidden: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    layer = "transformer.layers.0."
    shapes = {
        "embedding.word_embeddings.weight": (12, hidden),
        f"{layer}layer_norm.weight": (hidden,),
        f"{layer}attention.q_k_v_proj.weight": (3 * hidden, hidden),
        f"{layer}mlp.fc1.weight": (16, hidden),
        f"{layer}mlp.fc2.bias": (hidden,),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def torch_file(tmp_path: Path) -> Path:
    torch.save({"model": {**state(), "transformer.layers.0.mlp.fc1._extra_state": None}}, tmp_path / "spark.pt")
    return tmp_path / "spark.pt"


def test_torch_weights_go_to_a_folder_that_trainers_read_and_back(
    spark13b: Run, tmp_path: Path, torch_file: Path
) -> None:
    import mindspore

    said = spark13b("convert", "torch2ms", torch_file, tmp_path / "weights")
    assert "weights: ckpt, 8 tensors" in said.stdout
    loaded = mindspore.load_checkpoint(str(tmp_path / "weights" / "rank_0" / "model.ckpt"))
    fused = state()["transformer.layers.0.mlp.fc1.weight"]
    assert (loaded["transformer.transformer.layers.0.mlp.fc0.weight"].asnumpy() == fused[::2].numpy()).all()
    assert (loaded["transformer.transformer.layers.0.mlp.fc1.weight"].asnumpy() == fused[1::2].numpy()).all()
    summary = json.loads(spark13b("convert", "ms2torch", tmp_path / "weights", tmp_path / "back.pt", "--json").stdout)
    assert summary["tensors"] == 5 and summary["format"] == "torch" and summary["files"] == [str(tmp_path / "back.pt")]
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.keys() == state().keys() and all(torch.equal(back[name], value) for name, value in state().items())


def test_dtype_keeps_embedding_and_norms_unless_asked(spark13b: Run, tmp_path: Path, torch_file: Path) -> None:
    spark13b("convert", "torch2ms", torch_file, tmp_path / "weights")
    spark13b("convert", "dtype", tmp_path / "weights", tmp_path / "mixed")
    spark13b("convert", "dtype", tmp_path / "weights", tmp_path / "half.ckpt", "--embed-bf16", "--layernorm-bf16")
    mixed = json.loads(spark13b("ckpt", "info", tmp_path / "mixed", "--json").stdout)
    dtypes = {tensor["name"].rpartition("layers.0.")[2]: tensor["dtype"] for tensor in mixed["tensors"]}
    assert dtypes["transformer.embedding.word_embeddings.embedding_table"] == dtypes["layer_norm.gamma"] == "float32"
    assert dtypes["mlp.fc0.weight"] == dtypes["attention.q_proj.weight"] == "bfloat16"
    half = json.loads(spark13b("ckpt", "info", tmp_path / "half.ckpt", "--json").stdout)
    assert set(half["bytes_by_dtype"]) == {"bfloat16"}


def test_an_overflow_stops_with_the_tensor_s_name_unless_allowed(spark13b: Run, tmp_path: Path) -> None:
    torch.save({"transformer.layers.0.mlp.fc2.bias": torch.tensor([70000.0, 1.0])}, tmp_path / "x.pt")
    spark13b("convert", "torch2ms", tmp_path / "x.pt", tmp_path / "x.ckpt")
    said = spark13b("convert", "dtype", tmp_path / "x.ckpt", tmp_path / "y.ckpt", "--dtype", "float16", code=2)
    assert "tensor 'transformer.transformer.layers.0.mlp.fc2.bias' are beyond 65504" in said.stderr
    assert not (tmp_path / "y.ckpt").exists()
    spark13b("convert", "dtype", tmp_path / "x.ckpt", tmp_path / "y.ckpt", "--dtype", "float16", "--allow-overflow")


def test_targets_are_not_replaced_without_force(spark13b: Run, tmp_path: Path, torch_file: Path) -> None:
    (tmp_path / "weights").mkdir()
    said = spark13b("convert", "torch2ms", torch_file, tmp_path / "weights", code=2)
    assert "already exists" in said.stderr and "--force" in said.stderr
    spark13b("convert", "torch2ms", torch_file, tmp_path / "weights", "--force")
    said = spark13b("convert", "dtype", tmp_path / "weights", tmp_path / "weights", "--force", code=2)
    assert "source and target are the same" in said.stderr


def test_a_malicious_file_is_refused_with_exit_code_2(spark13b: Run, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            import os

            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"a": torch.ones(1), "b": Attack()}, tmp_path / "x.pt")
    said = spark13b("convert", "torch2ms", tmp_path / "x.pt", tmp_path / "out", code=2)
    assert "could run code" in said.stderr and not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


def test_names_that_the_model_does_not_know_are_noted(spark13b: Run, tmp_path: Path) -> None:
    torch.save({"lm_head.weight": torch.ones(2)}, tmp_path / "x.pt")
    said = spark13b("convert", "torch2ms", tmp_path / "x.pt", tmp_path / "x.ckpt")
    assert "1 names are none of the model's, e.g. transformer.lm_head.weight" in said.stderr


def test_a_target_with_a_dot_in_its_name_is_a_folder_as_any_other(
    spark13b: Run, tmp_path: Path, torch_file: Path
) -> None:
    spark13b("convert", "torch2ms", torch_file, tmp_path / "weights-v1.5")
    assert (tmp_path / "weights-v1.5" / "rank_0" / "model.ckpt").is_file()
    spark13b("convert", "ms2torch", tmp_path / "weights-v1.5", tmp_path / "torch-v1.5")
    assert (tmp_path / "torch-v1.5" / "pytorch_model.bin").is_file()
    spark13b("ckpt", "diff", torch_file, tmp_path / "torch-v1.5")
