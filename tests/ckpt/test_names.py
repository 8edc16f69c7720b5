"""The parameters of the model, and what else a checkpoint may hold."""

from __future__ import annotations

import pytest

from spark13b.ckpt import expected_shapes, kind_of, match_names
from spark13b.config import SparkConfig
from spark13b.errors import InputError
from spark13b.model.names import is_model_name


def test_the_original_s_model_has_exactly_the_expected_parameters(config: SparkConfig, golden_weights: dict) -> None:
    assert expected_shapes(config) == {name: golden_weights[name].shape for name in expected_shapes(config)}
    assert set(expected_shapes(config)) == set(golden_weights)


def test_the_13b_model_has_13_3_billion_parameters_in_723_tensors() -> None:
    shapes = expected_shapes(SparkConfig())
    counts = [1]
    total = 0
    for shape in shapes.values():
        count = counts[0]
        for size in shape:
            count *= size
        total += count
    assert len(shapes) == 723 and total == 13_312_542_720


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transformer.transformer.layers.0.mlp.fc0.weight", "weight"),
        ("transformer.layers.0.attention.q_k_v_proj.weight", "weight"),
        ("transformer.transformer.layers.0.attention.q_proj.mindpet_delta_lora_a", "adapter"),
        ("adam_m.transformer.transformer.layers.0.mlp.fc0.weight", "training"),
        ("adam_v.transformer.transformer.layers.0.attention.q_proj.mindpet_delta_lora_a", "training"),
        ("moment1.transformer.transformer.layernorm.gamma", "training"),
        ("moments.transformer.transformer.layernorm.gamma", "training"),
        ("global_step", "training"),
        ("learning_rate", "training"),
        ("scale_sense", "training"),
        ("current_iterator_step", "training"),
        ("transformer.slice_sparse_mask", "buffer"),
        ("transformer.attention_mask", "buffer"),
        ("transformer.transformer.layers.3.attention.key_past", "buffer"),
        ("transformer.transformer.layers.3.attention.value_past", "buffer"),
    ],
)
def test_entries_are_told_apart(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_masks_caches_adapters_and_training_state_do_not_count(config: SparkConfig) -> None:
    extra = {"transformer.slice_sparse_mask": (4, 4), "global_step": (), "a.q_proj.mindpet_delta_lora_b": (4, 3)}
    match_names(expected_shapes(config) | extra, config)


def test_everything_that_does_not_fit_is_in_one_message(config: SparkConfig) -> None:
    found = dict(expected_shapes(config))
    found["transformer.transformer.layers.1.attention.q_prj.weight"] = found.pop(
        "transformer.transformer.layers.1.attention.q_proj.weight"
    )
    found["transformer.transformer.layers.0.mlp.fc2.bias"] = (63,)
    for number in range(9):
        found[f"lm_head.{number}"] = (1,)
    with pytest.raises(InputError) as caught:
        match_names(found, config, where="x.ckpt")
    message = caught.value.message()
    assert "1 missing:\n    transformer.transformer.layers.1.attention.q_proj.weight" in message
    assert "10 unknown:" in message and "... and 5 more" in message
    assert "q_prj.weight (nearest known: transformer.transformer.layers.1.attention.q_proj.weight)" in message
    assert "fc2.bias is 63, the model's is 64" in message and "at: x.ckpt" in message


def test_torch_s_names_are_recognised_in_the_cure(config: SparkConfig) -> None:
    with pytest.raises(InputError, match="spark13b convert torch2ms"):
        match_names({"embedding.word_embeddings.weight": (512, 64)}, config)


def test_names_of_every_size_of_model_are_known() -> None:
    assert all(map(is_model_name, expected_shapes(SparkConfig())))
    assert not is_model_name("transformer.transformer.layers.0.mlp.fc3.weight")
    assert not is_model_name("transformer.transformer.layers.x.mlp.fc1.weight")
