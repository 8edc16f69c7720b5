"""Importing one of the original's MindFormers files: what is carried over, what is told, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from spark13b.config import differences, load_preset
from spark13b.config.mindformers import Imported, import_mindformers
from spark13b.config.mindformers_keys import KEYS
from spark13b.errors import InputError


def original(task: str = "sft", **changes: Any) -> dict[str, Any]:
    """A file shaped like the original's; `changes` are dotted keys with `__` for dots, None removes a key."""
    values: dict[str, Any] = {
        "seed": 0,
        "run_mode": {"pretrain": "train", "infer": "predict"}.get(task, "finetune"),
        "use_parallel": True,
        "runner_config": {"epochs": 10, "batch_size": 1, "sink_mode": True},
        "optimizer": {"type": "AdamWeightDecayX", "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "learning_rate": 3e-5},
        "lr_schedule": {
            "type": "CosineWithWarmUpLR",
            "learning_rate": 3e-5,
            "warmup_ratio": 0.0,
            "lr_end": 3e-6,
            "total_steps": 300000,
        },
        "train_dataset": {"data_loader": {"type": "MindDataset", "shuffle": False}, "drop_remainder": True},
        "parallel_config": {"data_parallel": 2, "model_parallel": 4, "pipeline_stage": 1, "optimizer_shard": True},
        "recompute_config": {"recompute": True, "recompute_slice_activation": False},
        "callbacks": [{"type": "MFLossMonitor"}, {"type": "CheckpointMointor", "save_checkpoint_steps": 1000}],
        "context": {"mode": 0, "device_target": "Ascend", "max_device_memory": "58GB"},
        "parallel": {"parallel_mode": 1, "enable_parallel_optimizer": True},
        "runner_wrapper": {
            "type": "MFTrainOneStepCell",
            "scale_sense": {"type": "FixedLossScaleUpdateCell", "loss_scale_value": 1},
            "use_clip_grad": True,
        },
        "model": {
            "model_config": {
                "type": "IFlytekSparkConfig",
                "seq_length": 32768,
                "hidden_size": 5120,
                "ffn_hidden_size": 28672,
                "num_layers": 40,
                "num_heads": 40,
                "vocab_size": 60000,
                "layernorm_epsilon": 1e-5,
                "eos_token_id": 2,
                "compute_type": "bfloat16",
                "softmax_compute_type": "bfloat16",
                "layernorm_compute_type": "float32",
                "embedding_init_type": "bfloat16",
                "dropout_rate": 0.0,
                "sparse_local_size": 8192,
                "seq_parallel": False,
                "do_sample": False,
            },
            "arch": {"type": "IFlytekSparkModelForCasualLM"},
        },
    }
    for key, value in changes.items():
        *sections, name = key.split("__")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        if value is None:
            del inner[name]
        else:
            inner[name] = value
    return values


def imported(tmp_path: Path, values: dict[str, Any], *assignments: str) -> Imported:
    file = tmp_path / "run_original.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return import_mindformers(file, assignments=assignments)


def reasons(result: Imported) -> dict[str, str]:
    return dict(result.left_out)


FLOAT16 = {
    "model__model_config__compute_type": "float16",
    "model__model_config__softmax_compute_type": "float16",
    "model__model_config__embedding_init_type": "float16",
    "context__max_device_memory": "31GB",
}
DYNAMIC = {
    "type": "DynamicLossScaleUpdateCell",
    "loss_scale_value": 4294967296,
    "scale_factor": 2,
    "scale_window": 1000,
}
LORA = {
    "pet_type": "lora",
    "lora_rank": 3,
    "lora_alpha": 128,
    "lora_dropout": 0.0,
    "target_modules": "q_proj|k_proj|v_proj|out_proj|fc0|fc1|fc2",
}


def test_the_original_sft_recipe_becomes_the_built_in_preset(tmp_path: Path) -> None:
    result = imported(tmp_path, original("sft"))
    assert differences(result.preset, load_preset("800T-A2-sft")) == {}


def test_the_original_pretrain_recipe_for_the_atlas_800_becomes_the_built_in_preset(tmp_path: Path) -> None:
    values = original(
        "pretrain",
        **FLOAT16,
        runner_wrapper__scale_sense=DYNAMIC,
        recompute_config__recompute_slice_activation=True,
        parallel_config__model_parallel=8,
        model__model_config__seq_parallel=True,
        lr_schedule={
            "type": "CosineWithWarmUpLR",
            "learning_rate": 3e-4,
            "warmup_steps": 1020,
            "lr_end": 3e-5,
            "total_steps": 300000,
        },
    )
    assert differences(imported(tmp_path, values).preset, load_preset("800-pretrain")) == {}


def test_the_original_lora_recipe_becomes_the_built_in_preset(tmp_path: Path) -> None:
    values = original(
        "lora",
        context__max_device_memory="59GB",
        parallel_config__data_parallel=4,
        parallel_config__model_parallel=2,
        model__model_config__pet_config=LORA,
    )
    assert differences(imported(tmp_path, values).preset, load_preset("800T-A2-lora")) == {}


def test_the_original_inference_file_becomes_the_built_in_preset_but_for_top_k(tmp_path: Path) -> None:
    values = original(
        "infer",
        **FLOAT16 | {"context__max_device_memory": "59GB"},
        parallel_config={"data_parallel": 1, "model_parallel": 1, "optimizer_shard": False},
        parallel__enable_parallel_optimizer=False,
        model__model_config__top_k=1,
    )
    result = imported(tmp_path, values)
    assert differences(result.preset, load_preset("800T-A2-infer")) == {"generation.top_k": (1, 0)}
    unused = {key for key, reason in result.left_out if reason == "inference does not use it"}
    assert {"optimizer", "lr_schedule", "runner_wrapper", "recompute_config", "callbacks"} <= unused


def test_the_written_file_loads_to_the_same_preset_and_states_no_defaults(tmp_path: Path) -> None:
    result = imported(tmp_path, original("sft"))
    file = tmp_path / "new.yaml"
    file.write_text(result.to_yaml(), encoding="utf-8")
    assert load_preset(file) == result.preset
    written = yaml.safe_load(result.to_yaml())
    assert written["description"] == "Imported from run_original.yaml"
    assert list(written)[:4] == ["description", "task", "model", "machine"]
    assert "lora" not in written and "keep_checkpoints" not in written["train"]


def test_everything_that_is_left_out_is_told_with_the_reason(tmp_path: Path) -> None:
    told = reasons(imported(tmp_path, original("sft", output_dir="./output", moe_config={"expert_num": 1})))
    assert told["context.mode"] == "spark13b decides this itself"
    assert told["output_dir"] == "a command's options name data, checkpoints and outputs"
    assert told["train_dataset"] == told["output_dir"]
    assert told["moe_config"] == told["parallel_config.pipeline_stage"] == "spark13b has nothing like it"
    assert told["model.model_config.eos_token_id"] == "spark13b reads it from the tokenizer"
    assert told["optimizer.learning_rate"] == "lr_schedule.learning_rate is used instead"
    assert "float32" in told["model.model_config.embedding_init_type"]
    assert "seed" not in told


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [
        ("model__model_config__seq_lenght", 16384, "model.model_config.seq_length"),
        ("runner_config__epoch", 3, "runner_config.epochs"),
        ("context__max_device_memry", "40GB", "context.max_device_memory"),
        ("parallel_config__pipline_stage", 2, "parallel_config.pipeline_stage"),
        ("recompute_config__recompute_slice_activations", True, "recompute_config.recompute_slice_activation"),
        ("runner_wrapper__max_grad_nrom", 2.0, "runner_wrapper.max_grad_norm"),
        ("use_paralel", False, "use_parallel"),
    ],
)
def test_a_typo_is_told_with_the_nearest_key(tmp_path: Path, key: str, value: Any, near: str) -> None:
    told = reasons(imported(tmp_path, original("sft", **{key: value})))
    assert told[key.replace("__", ".")] == f"not known; did you mean '{near}'?"


def test_a_key_like_no_other_is_told_too(tmp_path: Path) -> None:
    assert reasons(imported(tmp_path, original("sft", xyzzy={"q": 1})))["xyzzy.q"] == "not known"


def test_what_the_file_does_not_say_is_as_the_original_has_it(tmp_path: Path) -> None:
    removed = {f"model__model_config__{name}": None for name in ("compute_type", "softmax_compute_type", "do_sample")}
    values = original("infer", **removed, model__model_config__embedding_init_type=None)
    preset = imported(tmp_path, values).preset
    assert (preset.model.compute_type, preset.model.softmax_compute_type) == ("float16", "float16")
    assert preset.model.embedding_init_type == "float32"
    assert preset.generation.do_sample


def test_betas_in_a_pair_and_clipping_at_another_norm(tmp_path: Path) -> None:
    values = original("sft", optimizer={"betas": [0.8, 0.9]}, runner_wrapper__max_grad_norm=0.5)
    optimizer = imported(tmp_path, values).preset.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.clip_norm) == (0.8, 0.9, 0.5)
    told = reasons(imported(tmp_path, original("sft", optimizer={"betas": 0.9}, runner_wrapper__use_clip_grad=False)))
    assert told["optimizer.betas"] == "0.9 is not a pair of numbers"


def test_no_clipping_is_carried_over(tmp_path: Path) -> None:
    assert imported(tmp_path, original("sft", runner_wrapper__use_clip_grad=False)).preset.optimizer.clip_norm is None


def test_a_warm_up_ratio_becomes_steps_when_the_total_is_known(tmp_path: Path) -> None:
    schedule = imported(tmp_path, original("sft", lr_schedule__warmup_ratio=0.01)).preset.schedule
    assert (schedule.warmup_steps, schedule.total_steps) == (3000, 300000)
    result = imported(tmp_path, original("sft", lr_schedule__warmup_ratio=0.01, lr_schedule__total_steps=-1))
    assert (result.preset.schedule.warmup_steps, result.preset.schedule.total_steps) == (0, None)
    assert "schedule.warmup_steps yourself" in reasons(result)["lr_schedule.warmup_ratio"]


def test_without_a_schedule_the_rate_is_constant(tmp_path: Path) -> None:
    schedule = imported(tmp_path, original("sft", lr_schedule=None)).preset.schedule
    assert (schedule.kind, schedule.lr) == ("constant", 3e-5)


def test_schedules_and_scales_that_are_not_offered_are_told(tmp_path: Path) -> None:
    values = original(
        "sft", lr_schedule__type="PolynomialWithWarmUpLR", runner_wrapper__scale_sense={"type": "AdaptiveLossScale"}
    )
    told = reasons(imported(tmp_path, values))
    assert "PolynomialWithWarmUpLR is not offered" in told["lr_schedule.type"]
    assert "AdaptiveLossScale is not offered" in told["runner_wrapper.scale_sense.type"]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (DYNAMIC, ("dynamic", 2**32)),
        ({"type": "FixedLossScaleUpdateCell", "loss_scale_value": 1024}, ("fixed", 1024)),
        (1024.0, ("fixed", 1024)),
        (1.0, ("none", 2**32)),
    ],
)
def test_loss_scales(tmp_path: Path, scale: Any, expected: tuple[str, float]) -> None:
    train = imported(tmp_path, original("sft", runner_wrapper__scale_sense=scale)).preset.train
    assert (train.loss_scale, train.loss_scale_value) == expected


def test_the_persona_recipes_ffn_width_is_doubled_and_told(tmp_path: Path) -> None:
    result = imported(tmp_path, original("sft", model__model_config__ffn_hidden_size=14336))
    assert result.preset.model.ffn_hidden_size == 28672
    assert "28672" in reasons(result)["model.model_config.ffn_hidden_size"]


def test_the_machine_is_concluded_from_the_memory_limit(tmp_path: Path) -> None:
    machine = imported(tmp_path, original("infer", **FLOAT16)).preset.machine
    assert (machine.chip, machine.name, machine.max_device_memory_gb, machine.devices) == ("910A", "Atlas 800", 31, 8)
    result = imported(tmp_path, original("sft", context={"device_target": "Ascend"}))
    assert result.preset.machine.chip == "910B"
    assert "taken to be an Atlas 800T A2" in reasons(result)["context.max_device_memory"]
    cpu = original("infer", **FLOAT16 | {"context__device_target": "CPU"})
    assert imported(tmp_path, cpu).preset.machine.device == "cpu"


def test_two_keys_that_disagree_are_told(tmp_path: Path) -> None:
    result = imported(tmp_path, original("sft", parallel__enable_parallel_optimizer=False))
    assert not result.preset.parallel.optimizer_shard
    assert "says otherwise" in reasons(result)["parallel_config.optimizer_shard"]


def test_values_that_no_preset_may_have_are_refused_at_their_line(tmp_path: Path) -> None:
    values = original("sft", parallel_config__data_parallel="two")
    with pytest.raises(InputError, match=r"parallel\.data_parallel: expected a whole number") as caught:
        imported(tmp_path, values)
    line = caught.value.line
    assert line is not None
    text = (tmp_path / "run_original.yaml").read_text(encoding="utf-8").splitlines()
    assert text[line - 1].strip() == "data_parallel: two"


def test_assignments_mend_what_a_preset_may_not_have(tmp_path: Path) -> None:
    values = original("sft", runner_wrapper__scale_sense=None, **FLOAT16)
    with pytest.raises(InputError, match="loss scale"):
        imported(tmp_path, values)
    assert imported(tmp_path, values, "train.loss_scale=dynamic").preset.train.loss_scale == "dynamic"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("extends: 800-sft\n", "this is a preset already"),
        ("seed: 1\n", "there is no model.model_config in this file"),
        ("model:\n  model_config:\n    type: LlamaConfig\n", "the file describes another model, LlamaConfig"),
        ("model: [\n", "broken YAML: "),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, what: str) -> None:
    file = tmp_path / "other.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        import_mindformers(file)
    assert caught.value.what.startswith(what)
    assert caught.value.where == str(file)


def test_no_key_is_both_carried_over_and_left_out(tmp_path: Path) -> None:
    kept = original("sft")["model"]["model_config"].keys() - {"type", "eos_token_id", "dropout_rate"}
    assert not {f"model.model_config.{name}" for name in kept} & set(KEYS)
