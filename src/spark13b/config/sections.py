"""The sections of a preset beside `model`: machine, parallel, optimizer, schedule, train, lora, generation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from spark13b.config.checked import Checked, Problem
from spark13b.config.template import PROMPT_TEMPLATE, flaw_of

LINEAR_NAMES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc0", "fc1", "fc2")  # every matrix product of a layer
_MAX_SEED = 2**32 - 1  # numpy's
_LENGTHS = ("epochs", "steps", "tokens")


class MachineConfig(Checked):
    """The hardware that a preset is made for."""

    name: str = Field(min_length=1, description="for people")
    device: Literal["cpu", "ascend"]
    chip: Literal["none", "910A", "910B"] = Field("none", description="910A: Atlas 800; 910B: Atlas 800T A2")
    devices: int = Field(1, ge=1, description="devices of the whole run; on a CPU, processes")
    devices_per_node: int = Field(8, ge=1, description="devices of one machine")
    max_device_memory_gb: float | None = Field(None, gt=0, description="limit a device, null for none")
    peak_tflops: float | None = Field(None, gt=0, description="of a device in 16 bits; null: a CPU's is measured")

    def _problems(self) -> Iterator[Problem]:
        if self.device == "ascend" and self.chip == "none":
            fix = "910A for the Atlas 800, 910B for the Atlas 800T A2"
            yield Problem("chip", "an Ascend machine has a chip", fix, ("device",))
        if self.device == "cpu" and self.chip != "none":
            what = f"{self.chip} is an Ascend chip, but machine.device is cpu"
            yield Problem("chip", what, "write none", ("device",))
        if self.devices > self.devices_per_node and self.devices % self.devices_per_node:
            yield Problem(
                "devices",
                f"{self.devices} devices do not fill machines of {self.devices_per_node}",
                "choose a multiple of devices_per_node",
                ("devices_per_node",),
            )


class ParallelConfig(Checked):
    """How the work is split: rows over data-parallel groups, matrices over the devices of a group."""

    data_parallel: int = Field(1, ge=1, description="groups that see different rows")
    model_parallel: int = Field(1, ge=1, description="devices that share one copy of the model")
    sequence_parallel: bool = Field(False, description="also split LayerNorm and residuals, along the tokens")
    optimizer_shard: bool = Field(False, description="split Adam's state over the data-parallel groups")

    @property
    def devices(self) -> int:
        """Devices of the whole run."""
        return self.data_parallel * self.model_parallel


class OptimizerConfig(Checked):
    """AdamW with float32 state; norms and biases are not decayed."""

    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0, le=1)
    clip_norm: float | None = Field(1.0, gt=0, description="limit of the global gradient norm, null for none")
    master_weights: bool = Field(False, description="keep float32 copies of weights that are stored in 16 bits")


class ScheduleConfig(Checked):
    """The learning rate: linear warm-up to `lr`, then `kind` down to `lr_end` at `total_steps`."""

    kind: Literal["constant", "linear", "cosine"] = "cosine"
    lr: float = Field(3e-5, gt=0)
    lr_end: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    total_steps: int | None = Field(None, ge=1, description="null: the length of the run")

    def _problems(self) -> Iterator[Problem]:
        if self.lr_end > self.lr:
            what = f"{self.lr_end:g} is above lr {self.lr:g}"
            yield Problem("lr_end", what, "choose lr_end no greater than lr", ("lr",))
        if self.total_steps is not None and self.warmup_steps >= self.total_steps:
            yield Problem(
                "warmup_steps",
                f"{self.warmup_steps} leaves nothing of total_steps {self.total_steps}",
                "choose fewer warm-up steps than steps in all",
                ("total_steps",),
            )


class TrainConfig(Checked):
    """The training run. Its length is one of `steps`, `epochs` and `tokens`."""

    batch_size: int = Field(1, ge=1, description="rows a data-parallel group takes at once")
    accumulation_steps: int = Field(1, ge=1, description="such batches whose gradients are added up for one step")
    steps: int | None = Field(None, ge=1, description="length of the run in steps")
    epochs: int | None = Field(None, ge=1, description="length in passes over the data; 1 when no length is given")
    tokens: int | None = Field(None, ge=1, description="length in tokens, rounded up to whole steps")
    loss_mask_alignment: Literal["target", "input"] = Field("target", description="input: the original's numbers")
    loss_scale: Literal["none", "fixed", "dynamic"] = "none"
    loss_scale_value: float = Field(2.0**32, ge=1, description="the fixed scale, or where the dynamic one starts")
    loss_scale_factor: int = Field(2, ge=2, description="a dynamic scale grows and shrinks by this")
    loss_scale_window: int = Field(1000, ge=1, description="good steps before a dynamic scale grows")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the embedding and of each layer's outputs set to 0")
    recompute: bool = Field(False, description="keep no activations inside a layer, compute them again")
    recompute_slice_activations: bool = Field(False, description="split kept activations over model_parallel")
    seed: int = Field(0, ge=0, le=_MAX_SEED)
    shuffle: bool = True
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints, null: only at the end")
    keep_checkpoints: int = Field(3, ge=1, description="older ones are deleted, but for the best")
    eval_every: int | None = Field(None, ge=1, description="steps between evaluations, null: only at the end")
    log_every: int = Field(1, ge=1, description="steps between records in metrics.jsonl")

    @model_validator(mode="before")
    @classmethod
    def _one_epoch_by_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and all(values.get(way) is None for way in _LENGTHS):
            return {**values, "epochs": 1}
        return values

    def _problems(self) -> Iterator[Problem]:
        given = {way: getattr(self, way) for way in _LENGTHS if getattr(self, way) is not None}
        if len(given) > 1:
            ways = " and ".join(f"{length} {way}" for way, length in given.items())
            what = f"{ways} {'both' if len(given) == 2 else 'all'} set the length"
            first, *others = given
            yield Problem(
                first,
                what,
                "set all but one of them to null" if others[1:] else "set one of them to null",
                tuple(others),
            )


class LoraConfig(Checked):
    """Low-rank adapters; read by the task lora and by inference with adapters. The scale is alpha / rank."""

    rank: int = Field(3, ge=1)
    alpha: float = Field(128.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str = Field("|".join(LINEAR_NAMES), description="regular expression over the names of linear layers")

    def adapts(self, linear: str) -> bool:
        """Whether linear layers of that name have an adapter."""
        return re.search(self.targets, linear) is not None

    def _problems(self) -> Iterator[Problem]:
        try:
            pattern = re.compile(self.targets)
        except re.error as error:
            yield Problem("targets", f"'{self.targets}' is not a regular expression: {error}", "e.g. q_proj|v_proj")
            return
        if not any(pattern.search(name) for name in LINEAR_NAMES):
            yield Problem("targets", f"'{self.targets}' matches no layer", f"the names are {', '.join(LINEAR_NAMES)}")


class GenerationConfig(Checked):
    """How answers are drawn. The defaults are greedy."""

    max_new_tokens: int = Field(512, ge=1)
    min_new_tokens: int = Field(0, ge=0, description="no end of the answer before so many tokens")
    stop: list[str] = Field(default_factory=list, description="texts that end an answer; they are not part of it")
    num_beams: int = Field(1, ge=1, le=32, description="beam search over so many; 1: off")
    draft_tokens: int = Field(0, ge=0, le=15, description="guess so many tokens and check them in one step; 0: off")
    temperature: float = Field(1.0, gt=0)
    top_k: int = Field(0, ge=0, description="0: off")
    top_p: float = Field(1.0, gt=0, le=1, description="1: off")
    do_sample: bool = Field(False, description="false: always the most probable token")
    repetition_penalty: float = Field(1.0, ge=0, description="subtracted from a used token's logit; 1: off")
    repetition_penalty_increase: float = Field(0.1, ge=0, description="added each further time it is used")
    seed: int = Field(0, ge=0, le=_MAX_SEED)
    prompt_template: str = Field(PROMPT_TEMPLATE, description="{} is the question")

    def _problems(self) -> Iterator[Problem]:
        if self.min_new_tokens > self.max_new_tokens:
            what = f"{self.min_new_tokens} is more than max_new_tokens {self.max_new_tokens}"
            yield Problem("min_new_tokens", what, "choose fewer", ("max_new_tokens",))
        if "" in self.stop:
            yield Problem("stop", "an empty text would end every answer at once", "leave it out")
        if self.num_beams > 1 and self.do_sample:
            yield Problem("num_beams", "a beam search draws nothing", "set do_sample to false", ("do_sample",))
        if self.num_beams > 1 and self.draft_tokens:
            yield Problem("draft_tokens", "a beam search guesses no tokens", "set it to 0", ("num_beams",))
        flaw = flaw_of(self.prompt_template)
        if flaw is not None:
            yield Problem("prompt_template", *flaw)
