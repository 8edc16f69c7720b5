"""LoRA adapters as files: one small safetensors file that tells by itself what it is.

Its metadata hold, under `lora`, an `AdapterCard` as JSON. Adapters are also read out of files that have no card, such
as the original's checkpoints, where base, adapters and Adam's state stand together; the alpha of these must be told.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError

from spark13b.ckpt.casting import cast
from spark13b.ckpt.dtypes import BFLOAT16, Array, as_bytes, canonical
from spark13b.ckpt.inspecting import guessed_config
from spark13b.ckpt.opening import open_checkpoint
from spark13b.ckpt.quantized import kept_as
from spark13b.ckpt.tensors import Checkpoint, Derived, Recipe, TensorInfo
from spark13b.ckpt.torch_names import with_own_names
from spark13b.ckpt.writing import Written, write_checkpoint
from spark13b.config.checked import Checked
from spark13b.config.model import SparkConfig
from spark13b.config.sections import LINEAR_NAMES, LoraConfig
from spark13b.errors import InputError
from spark13b.model.names import adapter_name, is_norm, kind_of
from spark13b.progress import SILENT, Progress
from spark13b.run_folder import weights_of

ADAPTERS = "adapters.safetensors"  # the name of the file in a folder
CARD = "lora"  # the key of the metadata


class BaseShape(Checked):
    """What the base model must be. The number of heads leaves no trace in a checkpoint and may be unknown."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    vocab_size: int
    num_heads: int | None = None

    @classmethod
    def of(cls, config: SparkConfig) -> BaseShape:
        """The shape of a model whose heads are known."""
        return cls(**{name: getattr(config, name) for name in cls.model_fields})

    def differences(self, config: SparkConfig) -> list[str]:
        """Where `config` is another model, in words."""
        ours = {name: value for name, value in self.model_dump().items() if value is not None}
        theirs = {name: getattr(config, name) for name in ours}
        return [f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if theirs[name] != ours[name]]


class AdapterCard(Checked):
    """What a file of adapters says about itself."""

    version: Literal[1] = 1
    lora: LoraConfig
    base: BaseShape | None = Field(None, description="of the base model; null when nothing tells it")
    base_path: str | None = Field(None, description="where the base lay when the adapters were trained")
    base_fingerprint: str | None = Field(None, description="of the base's LayerNorms, see `fingerprint`")
    base_weights: str | None = Field(
        None, description="how the base kept its weights, see `kept_as`; null in old files"
    )

    def metadata(self) -> dict[str, str]:
        """For the file."""
        return {CARD: self.model_dump_json()}

    def other_weights(self, base: Checkpoint) -> str | None:
        """How the weights of `base` differ from those of training, float or rounded, when they do: `beside ...`."""
        if self.base_weights in (None, kept_as(base)):
            return None
        return f"beside {self.base_weights} weights, and those of {base.path} are {kept_as(base)}"


@dataclass(frozen=True)
class Adapters:
    """Adapters of one file, by the names they have here. Close it, or use it as a context manager."""

    card: AdapterCard
    tensors: Checkpoint

    @property
    def lora(self) -> LoraConfig:
        """The settings to load them with."""
        return self.card.lora

    def check_base(self, config: SparkConfig) -> None:
        """Raise InputError when they were made beside a model of another shape."""
        wrong = self.card.base.differences(config) if self.card.base is not None else []
        if wrong:
            raise InputError(
                f"the adapters belong to another model: {', '.join(wrong)}",
                where=self.tensors.path,
                fix="choose the base model and the preset that they were trained with",
            )

    def doubt(self, base: Checkpoint) -> str | None:
        """A sentence when `base` has the right shape and is not what they were trained beside, else None.

        It is another model, or this one rounded otherwise.
        """
        if self.card.base_fingerprint in (None, fingerprint(base)):
            other = self.card.other_weights(base)
            return f"{self.tensors.path} was trained {other}: answers may differ a little" if other else None
        at = f" ({self.card.base_path})" if self.card.base_path else ""
        return f"{base.path} is not the base that {self.tensors.path} was trained beside{at}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.tensors.close()


@dataclass(frozen=True)
class Parts:
    """The files that make a model: the base, and the adapters beside it if there are any."""

    base: Path
    adapters: Path | None = None

    def open(self, config: SparkConfig) -> OpenParts:
        """Open them to be loaded. Raises InputError when the adapters belong to a model of another shape."""
        base = with_own_names(open_checkpoint(self.base))
        adapters = open_adapters(self.adapters) if self.adapters is not None else None
        if adapters is not None:
            adapters.check_base(config)
        return OpenParts(base, adapters)


@dataclass(frozen=True)
class OpenParts:
    """A base and its adapters. Close them, or use it as a context manager."""

    base: Checkpoint
    adapters: Adapters | None

    @property
    def lora(self) -> LoraConfig | None:
        """What the model must be made with."""
        return self.adapters.lora if self.adapters is not None else None

    def doubt(self) -> str | None:
        """A sentence about what may not be meant: another base, adapters that are passed over; else None."""
        if self.adapters is not None:
            return self.adapters.doubt(self.base)
        unused = sum(kind_of(name) == "adapter" for name in self.base)
        return f"{unused} LoRA adapters in {self.base.path} are not used: add --adapter" if unused else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.base.close()
        if self.adapters is not None:
            self.adapters.tensors.close()


def write_adapters(
    path: Path, arrays: Mapping[str, Array], card: AdapterCard, *, force: bool = False, progress: Progress = SILENT
) -> Written:
    """Write `arrays` (full name -> adapter) and the card, with checksums. Raises as `write_checkpoint` does."""
    if not isinstance(arrays, Checkpoint):
        arrays = _in_memory(path, arrays)
    return write_checkpoint(path, arrays, "safetensors", force=force, metadata=card.metadata(), progress=progress)


def open_adapters(path: str | Path, alpha: float | None = None) -> Adapters:
    """The adapters in a file of them, in a run's or checkpoint's folder, or in a checkpoint with base and Adam's state.

    Without a card rank and targets follow from shapes and names, and `alpha` must be given. Raises InputError: there
    are no adapters, ranks differ, alpha is missing or is another one than the card's.
    """
    if alpha is not None and not alpha > 0:
        raise InputError(f"alpha {alpha:g} would make the adapters idle", where="--alpha", fix="128, for example")
    source = open_checkpoint(_file_of(Path(path)))
    names = {adapter_name(name): name for name in source if kind_of(name) == "adapter"}
    if not names:
        source.close()
        raise InputError("the checkpoint holds no LoRA adapters", where=path, fix="see 'spark13b ckpt info'")
    recipes = [Recipe.same(source, name, new_name) for new_name, name in names.items()]
    tensors = Derived(source.path, source.format, recipes, sources=[source])
    text = source.metadata.get(CARD)
    card = _read_card(text, source.path) if text else _guessed_card(source, tensors, alpha)
    if alpha is not None and card.lora.alpha != alpha:
        what = f"the adapters were trained with alpha {card.lora.alpha:g}, not {alpha:g}"
        raise InputError(what, where=source.path, fix="leave out --alpha")
    return Adapters(card, tensors)


def parts_of(load: Path, adapter: Path | None = None) -> Parts:
    """The base and adapters that `--load` and `--adapter` mean: a LoRA run stands for its adapters and their base.

    Raises InputError when the base is not where it was.
    """
    with open_checkpoint(_file_of(load)) as found:
        kinds = set(map(kind_of, found))
    if "weight" in kinds or "adapter" not in kinds:
        return Parts(load, adapter)
    if adapter is not None:
        what = "both --load and --adapter hold adapters, and nothing holds the base model"
        raise InputError(what, where=found.path, fix="give the base model with --load")
    text = found.metadata.get(CARD)
    base = _read_card(text, found.path).base_path if text else None
    if base is None or not Path(base).exists():
        what = "the file holds adapters alone" if base is None else "the base model of the adapters is gone"
        raise InputError(what, where=base or found.path, fix=f"add --load BASE --adapter {load}")
    return Parts(Path(base), load)


def card_of(config: SparkConfig, lora: LoraConfig, base: Checkpoint) -> AdapterCard:
    """The card of adapters that are trained beside `base`."""
    return AdapterCard(
        lora=lora,
        base=BaseShape.of(config),
        base_path=os.path.abspath(base.path),  # noqa: PTH100  # resolve() would follow links
        base_fingerprint=fingerprint(base),
        base_weights=kept_as(base),
    )


def fingerprint(base: Checkpoint) -> str | None:
    """A number for this very model: SHA-256 over its LayerNorms as bfloat16, to which most formats round alike.

    They are a few megabytes of the largest model. None when there are none.
    """
    names = sorted(name for name in base if kind_of(name) == "weight" and is_norm(name))
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode())
        digest.update(as_bytes(cast(base.read(name), BFLOAT16)[0]))
    return digest.hexdigest()[:16] if names else None


def _file_of(path: Path) -> Path:
    """The file of adapters that `path` is or holds, else what `open_checkpoint` takes `path` for."""
    path = weights_of(path)
    return path / ADAPTERS if (path / ADAPTERS).is_file() else path


def _read_card(text: str, path: Path) -> AdapterCard:
    try:
        return AdapterCard.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        what = f"what the adapters say about themselves cannot be read: {key}: {first['msg']}"
        raise InputError(what, where=path, fix="a newer spark13b may have written them") from error


def _guessed_card(source: Checkpoint, tensors: Checkpoint, alpha: float | None) -> AdapterCard:
    ranks = {info.shape[0] for info in tensors.infos.values() if info.name.endswith("_a") and info.shape}
    if len(ranks) != 1:
        what = f"the adapters have several ranks, {sorted(ranks)}" if ranks else "there is no matrix A of an adapter"
        raise InputError(what, where=source.path, fix="spark13b has one rank for all")
    if alpha is None:
        raise InputError(
            f"the file does not say the alpha of its adapters of rank {min(ranks)}",
            where=source.path,
            fix="cut them out with 'spark13b ckpt extract-lora SRC adapters.safetensors --alpha A' "
            "(128 in the original's presets)",
        )
    linears = {name.rsplit(".", 2)[-2] for name in tensors}
    targets = "|".join(name for name in LINEAR_NAMES if name in linears) or "|".join(map(re.escape, sorted(linears)))
    guessed = guessed_config(source.shapes())
    shape = BaseShape(**{**BaseShape.of(guessed).model_dump(), "num_heads": None}) if guessed is not None else None
    return AdapterCard(lora=LoraConfig(rank=min(ranks), alpha=alpha, targets=targets), base=shape)


def _in_memory(path: Path, arrays: Mapping[str, Array]) -> Checkpoint:
    """Arrays as a checkpoint, whose header then has its true length in the file."""
    recipes: Iterable[Recipe] = (
        Recipe(TensorInfo(name, array.shape, array.dtype), partial(_given, array))
        for name, array in ((name, canonical(array)) for name, array in arrays.items())
    )
    return Derived(path, "safetensors", recipes)


def _given(array: Array) -> Array:
    return array
