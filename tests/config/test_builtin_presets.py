"""The built-in presets: each one is valid, and holds the values of the original's recipes."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from spark13b.config import Preset, documents, load_preset, notes, preset_descriptions, preset_folder, preset_names
from spark13b.config.layers import leaves
from spark13b.config.library import part_names

NAMES = [
    *("800-infer", "800-infer-lora", "800-lora", "800-pretrain", "800-sft"),
    *("800T-A2-infer", "800T-A2-infer-lora", "800T-A2-lora", "800T-A2-persona", "800T-A2-pretrain", "800T-A2-sft"),
    *("cpu-13b-int4-infer", "cpu-13b-int4-lora", "cpu-13b-int8-infer"),
    *("cpu-tiny-infer", "cpu-tiny-lora", "cpu-tiny-pretrain", "cpu-tiny-sft"),
]
TRAINING = ("pretrain", "sft", "lora")

# task, data_parallel, model_parallel, devices, sequence_parallel, memory limit in GB
SPLITS = {
    "800T-A2-pretrain": ("pretrain", 2, 4, 8, False, 58),
    "800T-A2-sft": ("sft", 2, 4, 8, False, 58),
    "800T-A2-persona": ("sft", 2, 4, 8, False, 58),
    "800T-A2-lora": ("lora", 4, 2, 8, False, 59),
    "800T-A2-infer": ("infer", 1, 1, 1, False, 59),
    "800T-A2-infer-lora": ("infer", 1, 1, 1, False, 59),
    "800-pretrain": ("pretrain", 2, 8, 16, True, 31),
    "800-sft": ("sft", 2, 8, 16, True, 31),
    "800-lora": ("lora", 1, 8, 8, False, 31),
    "800-infer": ("infer", 1, 2, 2, False, 31),
    "800-infer-lora": ("infer", 1, 2, 2, False, 31),
}
# lr, lr_end, warmup_steps, total_steps
SCHEDULES = {
    "800T-A2-pretrain": (3e-4, 3e-5, 1020, 300000),
    "800-pretrain": (3e-4, 3e-5, 1020, 300000),
    "800T-A2-sft": (3e-5, 3e-6, 0, 300000),
    "800-sft": (3e-5, 3e-6, 0, 300000),
    "800T-A2-lora": (3e-5, 3e-6, 0, 300000),
    "800-lora": (3e-5, 3e-6, 0, 300000),
    "800T-A2-persona": (3e-5, 1e-10, 0, None),
    "cpu-tiny-pretrain": (4e-3, 4e-4, 5, None),
    "cpu-tiny-sft": (3e-3, 1e-4, 5, None),
}


@pytest.fixture(scope="module")
def presets() -> dict[str, Preset]:
    return {name: load_preset(name) for name in preset_names()}


def test_the_names_are_those_of_the_plan_and_parts_are_not_among_them() -> None:
    assert preset_names() == NAMES
    assert all(name.startswith("parts/") for name in part_names())


def test_every_preset_is_listed_with_the_description_its_yaml_has(presets: dict[str, Preset]) -> None:
    assert preset_descriptions() == {name: preset.description for name, preset in presets.items()}
    for name in NAMES:
        text = preset_descriptions()[name]
        assert len(f"{name:18}  {text}") <= 80


def test_no_preset_states_twice_what_it_already_gets_from_a_part() -> None:
    for name in NAMES:
        own = yaml.safe_load((preset_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
        extended = own.pop("extends")
        below = _merged_parts([extended] if isinstance(extended, str) else extended)
        repeated = {key for key, value in leaves(own).items() if below.get(key, object()) == value}
        assert not repeated, name


def _merged_parts(names: list[str]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name in names:
        values = yaml.safe_load((preset_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
        extended = values.pop("extends", [])
        flat |= _merged_parts([extended] if isinstance(extended, str) else extended)
        flat |= leaves(values)
    return flat


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("800")])
def test_the_13b_presets_have_the_shape_of_the_released_model(presets: dict[str, Preset], name: str) -> None:
    model = presets[name].model
    assert (model.num_layers, model.num_heads, model.hidden_size, model.head_size) == (40, 40, 5120, 128)
    assert (model.ffn_hidden_size, model.vocab_size, model.sparse_local_size) == (28672, 60000, 8192)
    assert model.seq_length == (8192 if name == "800T-A2-persona" else 32768)
    assert (model.layernorm_epsilon, model.rope_theta) == (1e-5, 1e6)


@pytest.mark.parametrize("name", SPLITS)
def test_the_work_is_split_as_in_the_original(presets: dict[str, Preset], name: str) -> None:
    preset = presets[name]
    parallel, machine = preset.parallel, preset.machine
    assert SPLITS[name] == (
        *(preset.task, parallel.data_parallel, parallel.model_parallel, machine.devices),
        *(parallel.sequence_parallel, machine.max_device_memory_gb),
    )
    assert (machine.device, machine.devices_per_node) == ("ascend", 8)
    assert machine.chip == ("910B" if name.startswith("800T") else "910A")
    assert parallel.optimizer_shard == (preset.task in TRAINING)
    assert preset.train.batch_size == 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_learning_rates_are_those_of_the_recipes(presets: dict[str, Preset], name: str) -> None:
    schedule = presets[name].schedule
    assert (schedule.lr, schedule.lr_end, schedule.warmup_steps, schedule.total_steps) == SCHEDULES[name]
    assert schedule.kind == "cosine"


@pytest.mark.parametrize("name", SPLITS)
def test_numbers_are_stored_and_computed_as_in_the_original(presets: dict[str, Preset], name: str) -> None:
    preset = presets[name]
    model = preset.model
    compute = "bfloat16" if name.startswith("800T") and preset.task in TRAINING else "float16"
    assert (model.compute_type, model.param_init_type, model.softmax_compute_type) == (compute, compute, compute)
    assert model.layernorm_compute_type == "float32"
    assert model.embedding_init_type == ("float32" if compute == "bfloat16" else "float16")


@pytest.mark.parametrize("name", [name for name in SPLITS if "infer" not in name])
def test_training_scales_the_loss_clips_and_recomputes_as_in_the_original(
    presets: dict[str, Preset], name: str
) -> None:
    train, optimizer = presets[name].train, presets[name].optimizer
    on_800 = not name.startswith("800T")
    assert train.recompute
    assert train.recompute_slice_activations == on_800
    assert train.loss_scale == ("dynamic" if on_800 else "none")
    assert (train.loss_scale_value, train.loss_scale_factor, train.loss_scale_window) == (2**32, 2, 1000)
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.95, 1e-8)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0, 1)
    assert train.loss_mask_alignment == "target"


@pytest.mark.parametrize("name", [name for name in SPLITS if "lora" in name])
def test_adapters_are_those_of_the_original(presets: dict[str, Preset], name: str) -> None:
    lora = presets[name].lora
    assert (lora.rank, lora.alpha, lora.dropout) == (3, 128, 0)
    assert lora.targets == "q_proj|k_proj|v_proj|out_proj|fc0|fc1|fc2"


def test_the_persona_recipe_has_a_global_batch_of_two(presets: dict[str, Preset]) -> None:
    persona = presets["800T-A2-persona"]
    assert persona.train.batch_size * persona.parallel.data_parallel == 2
    assert persona.model.cache_slots == 8192


def test_the_tiny_presets_share_one_model_and_really_use_the_window(presets: dict[str, Preset]) -> None:
    tiny = [preset for name, preset in presets.items() if name.startswith("cpu-tiny")]
    assert all(preset.model == tiny[0].model for preset in tiny)
    assert all((preset.machine.device, preset.machine.devices) == ("cpu", 1) for preset in tiny)
    assert tiny[0].model.sparse_local_size < tiny[0].model.seq_length
    assert tiny[0].model.compute_type == "float32"


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_written_out_in_full_loads_again_to_the_same_preset(
    presets: dict[str, Preset], name: str, tmp_path: Any
) -> None:
    file = tmp_path / "resolved.yaml"
    file.write_text(presets[name].to_yaml(), encoding="utf-8")
    assert load_preset(file) == presets[name]
    assert set(leaves(yaml.safe_load(file.read_text(encoding="utf-8")))) == set(leaves(presets[name].model_dump()))


def test_the_files_mean_the_same_to_readers_of_yaml_1_1() -> None:
    for path in preset_folder().rglob("*.yaml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8")) == documents.read(path).values  # 1e-4 would be text


@pytest.mark.parametrize("name", NAMES)
def test_no_built_in_preset_gives_cause_for_a_note(presets: dict[str, Preset], name: str) -> None:
    assert notes(presets[name]) == []
