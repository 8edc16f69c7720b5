"""Reads a YAML file of the original (MindFormers, `research/iflytekspark`) and makes a preset of it.

Nothing is lost in silence: every key that the preset does not hold comes back with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark13b.config import documents
from spark13b.config.layers import Layer, Origin, leaves, merge
from spark13b.config.load import assignment_layer, validated
from spark13b.config.mindformers_keys import KEYS, SECTIONS
from spark13b.config.preset import Preset
from spark13b.errors import InputError, nearest

_MODEL = "model.model_config"
_PEAK_TFLOPS = {"910A": 256, "910B": 313}  # as presets/parts/machine-*.yaml
_PET = f"{_MODEL}.pet_config"

# Carried over as they are: key of the original -> key of the preset
_TRAINING = {
    "runner_config.epochs": "train.epochs",
    "runner_config.batch_size": "train.batch_size",
    "runner_config.gradient_accumulation_steps": "train.accumulation_steps",
    f"{_MODEL}.dropout_rate": "train.dropout",
    "train_dataset.data_loader.shuffle": "train.shuffle",
    "optimizer.beta1": "optimizer.beta1",
    "optimizer.beta2": "optimizer.beta2",
    "optimizer.eps": "optimizer.epsilon",
    "optimizer.weight_decay": "optimizer.weight_decay",
    "lr_schedule.lr_end": "schedule.lr_end",
    "runner_wrapper.scale_sense.scale_factor": "train.loss_scale_factor",
    "runner_wrapper.scale_sense.scale_window": "train.loss_scale_window",
    "recompute_config.recompute": "train.recompute",
    "recompute_config.recompute_slice_activation": "train.recompute_slice_activations",
}
_ALWAYS = {
    "parallel_config.data_parallel": "parallel.data_parallel",
    "parallel_config.model_parallel": "parallel.model_parallel",
    **{
        f"{_MODEL}.{name}": f"model.{name}"
        for name in (
            *("num_layers", "hidden_size", "num_heads", "vocab_size", "seq_length", "sparse_local_size"),
            *("layernorm_epsilon", "layernorm_compute_type"),
        )
    },
    **{
        f"{_MODEL}.{name}": f"generation.{name}"
        for name in ("top_k", "top_p", "temperature", "repetition_penalty", "repetition_penalty_increase")
    },
}
_LORA = {
    f"{_PET}.lora_rank": "lora.rank",
    f"{_PET}.lora_alpha": "lora.alpha",
    f"{_PET}.lora_dropout": "lora.dropout",
    f"{_PET}.target_modules": "lora.targets",
}
_SCHEDULES = {"CosineWithWarmUpLR": "cosine", "LinearWithWarmUpLR": "linear", "ConstantWarmUpLR": "constant"}
_LOSS_SCALES = {"FixedLossScaleUpdateCell": "fixed", "DynamicLossScaleUpdateCell": "dynamic"}
_ONLY_TRAINING = ("runner_config", "optimizer", "lr_schedule", "runner_wrapper", "recompute_config", "callbacks")


@dataclass(frozen=True)
class Imported:
    """A checked preset, and what the file says beyond it: (key, reason)."""

    preset: Preset
    left_out: list[tuple[str, str]]

    def to_yaml(self) -> str:
        """The values that were carried over, as a preset file; built-in defaults are not repeated."""
        return documents.dump(self.preset.model_dump(exclude_unset=True))


def import_mindformers(path: Path, *, assignments: Sequence[str] = ()) -> Imported:
    """Read the original's YAML file at `path`, with `--set` strings laid over it.

    Raises InputError when it is not YAML, not a file of this model, or holds values that no preset may have.
    """
    source = documents.read(path)
    if not isinstance(source.get(_MODEL), dict):
        preset = isinstance(source.get("task"), str) or "extends" in source.values
        what = "this is a preset already" if preset else "there is no model.model_config in this file"
        fix = (
            f"check it with 'spark13b preset check {path}'" if preset else "give one of the original's run_*.yaml files"
        )
        raise InputError(what, where=path, fix=fix)
    kind = source.get(f"{_MODEL}.type")
    if kind not in (None, "IFlytekSparkConfig"):
        line = (source.origin(f"{_MODEL}.type") or Origin("")).line
        raise InputError(
            f"the file describes another model, {kind}",
            where=path,
            line=line,
            fix="only IFlytekSparkConfig can be read",
        )
    reader = _Import(source, path)
    layer = merge([reader.read(), *map(assignment_layer, assignments)])
    return Imported(validated(layer, str(path)), reader.left_out)


class _Import:
    """Takes keys out of the source one by one; what is left in the end is what could not be carried over."""

    def __init__(self, source: Layer, path: Path) -> None:
        self._source = source
        self._path = path
        self._left = _numbered_leaves(source.values)
        self._asked: set[str] = set()
        self._layers: list[Layer] = []
        self.left_out: list[tuple[str, str]] = []

    def read(self) -> Layer:
        """Everything that a preset can hold; `left_out` then tells the rest."""
        self._put("description", f"Imported from {self._path.name}", None)
        task = self._task()
        self._put("task", task, "run_mode")
        self._carry(_ALWAYS)
        self._model()
        self._machine()
        self._lora()
        self._seed()
        if task != "infer":
            self._carry(_TRAINING)
            self._schedule()
            self._optimizer()
            self._loss_scale()
            self._saving()
        self.left_out += self._rest(task)
        return merge(self._layers)

    # -- taking and putting

    def _take(self, key: str) -> Any:
        self._asked.add(key)
        return self._left.pop(key, None)

    def _put(self, key: str, value: Any, source_key: str | None) -> None:
        origin = self._source.origin(source_key) if source_key else None
        self._layers.append(Layer.single(key, value, origin or Origin(str(self._path))))

    def _carry(self, table: dict[str, str]) -> None:
        for source_key, key in table.items():
            value = self._take(source_key)
            if value is not None:
                self._put(key, value, source_key)

    def _remark(self, key: str, text: str) -> None:
        self.left_out.append((key, text))

    # -- sections

    def _task(self) -> str:
        mode = self._take("run_mode")
        if mode in ("predict", "export", "eval"):
            return "infer"
        if isinstance(self._source.get(_PET), dict):
            return "lora"
        if mode == "finetune":
            return "sft"
        if mode != "train":
            self._remark("run_mode", f"{mode or 'not given'}; the task is taken to be pretrain")
        return "pretrain"

    def _model(self) -> None:
        compute = self._take(f"{_MODEL}.compute_type") or self._take(f"{_MODEL}.compute_dtype") or "float16"
        self._put("model.compute_type", compute, f"{_MODEL}.compute_type")
        stored = self._take(f"{_MODEL}.param_init_type")
        if stored not in (None, compute):
            self._remark(f"{_MODEL}.param_init_type", "the original stores weights in the compute type")
        self._put("model.param_init_type", compute, f"{_MODEL}.compute_type")
        softmax = self._take(f"{_MODEL}.softmax_compute_type") or "float16"
        self._put("model.softmax_compute_type", softmax, f"{_MODEL}.softmax_compute_type")
        key = f"{_MODEL}.embedding_init_type"
        embedding = self._take(key) or "float32"
        if embedding == "bfloat16":
            self._remark(key, "written as float32: the original stores a float32 embedding under this name")
            embedding = "float32"
        self._put("model.embedding_init_type", embedding, key)
        self._ffn()
        do_sample = self._take(f"{_MODEL}.do_sample")
        self._put("generation.do_sample", True if do_sample is None else do_sample, f"{_MODEL}.do_sample")

    def _ffn(self) -> None:
        key = f"{_MODEL}.ffn_hidden_size"
        width, hidden = self._take(key), self._source.get(f"{_MODEL}.hidden_size")
        if (width, hidden) == (14336, 5120):  # the persona recipe's way to write the 13B model
            self._remark(key, "written as 28672: spark13b counts gate and up together")
            width = 28672
        if width is not None:
            self._put("model.ffn_hidden_size", width, key)

    def _machine(self) -> None:
        on_cpu = str(self._take("context.device_target") or "Ascend").lower() == "cpu"
        limit = self._take("context.max_device_memory")
        gigabytes = _gigabytes(limit)
        if limit is not None and gigabytes is None:
            self._remark("context.max_device_memory", f"'{limit}' is not a size like 58GB")
        large = gigabytes is None or gigabytes > 32
        chip, name = ("910B", "Atlas 800T A2") if large else ("910A", "Atlas 800")
        if on_cpu:
            chip, name = "none", "CPU"
        elif gigabytes is None:
            self._remark("context.max_device_memory", "not given: the machine is taken to be an Atlas 800T A2 (910B)")
        split = [self._source.get(f"parallel_config.{way}") for way in ("data_parallel", "model_parallel")]
        devices = 1
        for ways in split:
            devices *= ways if isinstance(ways, int) else 1
        for key, value in (("name", name), ("device", "cpu" if on_cpu else "ascend"), ("chip", chip)):
            self._put(f"machine.{key}", value, "context.max_device_memory")
        self._put("machine.devices", devices, "parallel_config")
        if gigabytes is not None and not on_cpu:
            self._put("machine.max_device_memory_gb", gigabytes, "context.max_device_memory")
        if chip in _PEAK_TFLOPS:
            self._put("machine.peak_tflops", _PEAK_TFLOPS[chip], "context.max_device_memory")
        shard, sequence = "parallel.enable_parallel_optimizer", f"{_MODEL}.seq_parallel"
        self._either("parallel.optimizer_shard", (shard, "parallel_config.optimizer_shard"))
        self._either("parallel.sequence_parallel", (sequence, "parallel_config.use_seq_parallel"))

    def _either(self, key: str, source_keys: tuple[str, str]) -> None:
        """Two keys of the original for one of ours: the first wins where both are given."""
        first, second = map(self._take, source_keys)
        if first is not None and second is not None and first != second:
            self._remark(source_keys[1], f"{source_keys[0]} says otherwise and wins")
        if first is not None or second is not None:
            chosen = 0 if first is not None else 1
            self._put(key, (first, second)[chosen], source_keys[chosen])

    def _lora(self) -> None:
        if isinstance(self._source.get(_PET), dict):
            self._carry(_LORA)
            kind = self._take(f"{_PET}.pet_type")
            if kind != "lora":
                self._remark(f"{_PET}.pet_type", f"{kind} is not offered, only lora")

    def _seed(self) -> None:
        seed = self._take("seed")
        if seed is not None:
            self._put("train.seed", seed, "seed")
            self._put("generation.seed", seed, "seed")

    def _schedule(self) -> None:
        kind = self._take("lr_schedule.type")
        if kind is not None and kind not in _SCHEDULES:
            self._remark("lr_schedule.type", f"{kind} is not offered; the preset has cosine")
        if kind is None:
            self._carry({"optimizer.learning_rate": "schedule.lr"})
            self._put("schedule.kind", "constant", "optimizer.learning_rate")
        else:
            self._carry({"lr_schedule.learning_rate": "schedule.lr"})
            self._put("schedule.kind", _SCHEDULES.get(kind, "cosine"), "lr_schedule.type")
        total = self._take("lr_schedule.total_steps")
        if total not in (None, -1):  # -1: the length of the run, as null is here
            self._put("schedule.total_steps", total, "lr_schedule.total_steps")
        self._carry({"lr_schedule.warmup_steps": "schedule.warmup_steps"})
        key = "lr_schedule.warmup_ratio"
        ratio = self._take(key)
        if isinstance(ratio, int | float) and isinstance(total, int) and total > 0:
            self._put("schedule.warmup_steps", int(ratio * total), key)
        elif ratio:
            self._remark(key, f"{ratio} of an unknown total_steps; set schedule.warmup_steps yourself")

    def _optimizer(self) -> None:
        betas = self._take("optimizer.betas")
        if isinstance(betas, list) and len(betas) == 2:
            for name, value in zip(("beta1", "beta2"), betas, strict=True):
                self._put(f"optimizer.{name}", value, "optimizer.betas")
        elif betas is not None:
            self._remark("optimizer.betas", f"{betas} is not a pair of numbers")
        clip, norm = self._take("runner_wrapper.use_clip_grad"), self._take("runner_wrapper.max_grad_norm")
        if clip is not None:
            limit = (1.0 if norm is None else norm) if clip else None
            self._put("optimizer.clip_norm", limit, "runner_wrapper.use_clip_grad")

    def _loss_scale(self) -> None:
        section = "runner_wrapper.scale_sense"
        kind, value = self._take(f"{section}.type"), self._take(f"{section}.loss_scale_value")
        if kind is None:  # `scale_sense: 1.0` is the short form of a fixed scale
            value = self._take(section)
            kind = "FixedLossScaleUpdateCell"
        scale = _LOSS_SCALES.get(kind)
        if scale is None:
            self._remark(f"{section}.type", f"{kind} is not offered, only {' and '.join(_LOSS_SCALES)}")
        elif value == 1 and scale == "fixed":
            self._put("train.loss_scale", "none", section)
        elif value is not None:
            self._put("train.loss_scale", scale, section)
            self._put("train.loss_scale_value", value, f"{section}.loss_scale_value")

    def _saving(self) -> None:
        callbacks = self._source.get("callbacks")
        for number, callback in enumerate(callbacks if isinstance(callbacks, list) else []):
            if isinstance(callback, dict) and str(callback.get("type", "")).startswith("Checkpoint"):
                prefix = f"callbacks.{number}"
                self._carry(
                    {
                        f"{prefix}.save_checkpoint_steps": "train.save_every",
                        f"{prefix}.keep_checkpoint_max": "train.keep_checkpoints",
                    }
                )

    # -- the rest

    def _rest(self, task: str) -> list[tuple[str, str]]:
        """Every key that was not taken, sections of one fate as one line."""
        told: dict[str, str] = {}
        for key in self._left:
            section = _covering(key, SECTIONS)
            unused = _covering(key, _ONLY_TRAINING) if task == "infer" else None
            if unused:
                told.setdefault(unused, "inference does not use it")
            elif section:
                told.setdefault(section, SECTIONS[section])
            else:
                told[key] = KEYS.get(key) or self._unknown(key)
        return list(told.items())

    def _unknown(self, key: str) -> str:
        """Nested typos pass silently in MindFormers; here they are told, with what was probably meant."""
        section = key.rpartition(".")[0]
        known = [*self._asked, *KEYS, *_TRAINING, *SECTIONS]
        siblings = [name for name in known if name.rpartition(".")[0] == section]
        near = nearest(key, siblings) or nearest(key, known)
        return "not known" + (f"; did you mean '{near}'?" if near else "")


def _covering(key: str, sections: Any) -> str | None:
    """The section that `key` is, or lies in."""
    return next((section for section in sections if key == section or key.startswith(f"{section}.")), None)


def _numbered_leaves(values: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys of all values; members of a list of sections are numbered."""
    flat: dict[str, Any] = {}
    for key, value in leaves(values).items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            members = {str(number): item for number, item in enumerate(value)}
            flat.update({f"{key}.{name}": item for name, item in leaves(members).items()})
        else:
            flat[key] = value
    return flat


def _gigabytes(text: Any) -> float | None:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*GB\s*", str(text), re.IGNORECASE)
    return float(match[1]) if match else None
