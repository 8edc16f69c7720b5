"""Write the model as a folder of safetensors with the names and the configuration that other tools read.

Tensors have the names of the original's torch release. Loads no MindSpore.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark13b.ckpt.casting import target_dtype, with_dtype
from spark13b.ckpt.merging import merged
from spark13b.ckpt.torch_names import to_torch
from spark13b.ckpt.writing import Written, check_room, room_needed, write_checkpoint
from spark13b.config.preset import Preset
from spark13b.data.tokenizer import MODEL_FILE, VOCAB_FILE, SparkTokenizer
from spark13b.errors import JobError
from spark13b.files import check_writable, replacing
from spark13b.infer.export.card import card_text
from spark13b.infer.session import FoundModel
from spark13b.model.names import match_names
from spark13b.progress import SILENT, Progress

MODEL_TYPE = "iflytek_spark"
SHARD_SIZE = 5 * 10**9  # bytes; hubs want files of no more
_METADATA = {"format": "pt"}  # whose names these are; transformers reads no file that does not say
_OURS_ALONE = ("attention_backend",)


@dataclass(frozen=True)
class Folder:
    """What was written."""

    path: Path
    written: Written
    dtype: str


def export_hub(
    found: FoundModel,
    output: Path,
    *,
    dtype: str | None = None,
    shard_size: int = SHARD_SIZE,
    force: bool = False,
    progress: Progress = SILENT,
) -> Folder:
    """Write weights, config.json, generation_config.json, tokenizer and README.md into the new folder `output`.

    Adapters are folded in. `dtype` None keeps the number formats; else embedding and LayerNorms stay float32, as in
    `ckpt.casting`. More than `shard_size` bytes become shards with an index. Raises InputError (weights of another
    model, a number beyond `dtype`'s largest, `output` exists) and JobError (the disk is full); then nothing is left.
    """
    wanted = target_dtype(dtype) if dtype is not None else None
    check_writable(output, force=force)
    with found.weights.open(found.preset.model) as parts:
        doubt = parts.doubt()
        if doubt:
            progress.note(f"note: {doubt}")
        match_names(parts.base.shapes(), found.preset.model, where=parts.base.path)
        weights = parts.base if parts.adapters is None else merged(parts.base, parts.adapters)
        cast = weights if wanted is None else with_dtype(weights, wanted)
        tensors = to_torch(cast)
        stored = next(info.dtype.name for name, info in tensors.infos.items() if ".attention." in name)
        sharded = tensors.nbytes > shard_size
        check_room(output, room_needed(tensors.infos.values()))
        with _disk_of(output), replacing(output, force=force) as draft:
            written = write_checkpoint(
                draft,
                tensors,
                "safetensors",
                metadata=_METADATA,
                shard_size=shard_size if sharded else None,
                member=None if sharded else "model.safetensors",
                progress=progress,
            )
            _write_texts(draft, found, stored)
    files = tuple(output / file.relative_to(draft) for file in written.files)
    return Folder(output, Written(files, written.tensors, written.nbytes), stored)


@contextmanager
def _disk_of(output: Path) -> Iterator[None]:
    """An error of the job names the disk of `output`, not the draft that is gone by then."""
    try:
        yield
    except JobError as error:
        raise JobError(error.what, where=output.parent, fix=error.fix) from error


def config_of(preset: Preset, tokenizer: SparkTokenizer, dtype: str) -> dict[str, Any]:
    """config.json: the model's shape by the names of Hugging Face's tools, then by those of the original's YAML."""
    model = preset.model
    return {
        "architectures": ["SparkForCausalLM"],
        "model_type": MODEL_TYPE,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_heads,
        "head_dim": model.head_size,
        "intermediate_size": model.ffn_hidden_size // 2,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": model.seq_length,
        "sliding_window": model.sparse_local_size,
        "rope_theta": model.rope_theta,
        "layer_norm_eps": model.layernorm_epsilon,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
        "prompt_template": preset.generation.prompt_template,
        **{name: value for name, value in model.model_dump(mode="json").items() if name not in _OURS_ALONE},
    }


def generation_config_of(preset: Preset, tokenizer: SparkTokenizer) -> dict[str, Any]:
    """generation_config.json. Spark's repetition penalty is added, that of other tools multiplies: it is left out."""
    options = preset.generation
    values: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
        "max_new_tokens": options.max_new_tokens,
        "do_sample": options.do_sample,
    }
    if options.do_sample:
        values |= {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    return values


def _write_texts(folder: Path, found: FoundModel, dtype: str) -> None:
    """All but the weights."""
    preset, tokenizer = found.preset, found.tokenizer
    for name, values in (
        ("config.json", config_of(preset, tokenizer, dtype)),
        ("generation_config.json", generation_config_of(preset, tokenizer)),
    ):
        (folder / name).write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (folder / "preset.yaml").write_text(preset.to_yaml(), encoding="utf-8")
    model = Path(tokenizer.where)
    shutil.copyfile(model, folder / MODEL_FILE)
    if model.with_name(VOCAB_FILE).is_file():
        shutil.copyfile(model.with_name(VOCAB_FILE), folder / VOCAB_FILE)
    (folder / "README.md").write_text(card_text(folder.name, preset, dtype), encoding="utf-8")
