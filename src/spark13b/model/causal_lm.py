"""`SparkForCausalLM`: the model as the rest of spark13b and other programs use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from spark13b.config.model import SparkConfig
from spark13b.model.attention.choose import Choice, choose_backend
from spark13b.model.buckets import bucket
from spark13b.model.collectives import all_gather
from spark13b.model.device import check_types, device
from spark13b.model.initialize import initial_value
from spark13b.model.loss import Alignment, Loss, align
from spark13b.model.mesh import Mesh
from spark13b.model.names import adapter_shapes, expected_shapes, match_adapters, match_names
from spark13b.model.native_training import NativeLoss, NativeParameters, choose_training
from spark13b.model.transformer import Setup, SparkModel
from spark13b.native.failures import operator_failures


class SparkForCausalLM(nn.Cell):
    """A Spark model with NumPy at its edges; MindSpore compiles one graph for each shape bucket.

    `seed` gives random weights to train from; None leaves zeros, for weights that are loaded next. With `setup` a
    process holds its part of a divided model, the model has adapters beside its layers (the seed is theirs, too), and
    dropout in training.
    """

    def __init__(self, config: SparkConfig, seed: int | None = 0, setup: Setup | None = None) -> None:
        device()  # graph mode, before the first cell is made
        super().__init__()
        self.config, self.setup = config, setup or Setup()
        self.library, self.training_choice = choose_training(config, self.setup)
        if self.library is None:
            check_types(config)
        self.transformer = SparkModel(config, self.setup)
        mesh = self.setup.mesh
        # in a dictionary, so that they are no sub-cells of this one
        self._graphs: dict[str, Any] = {"logits": _Logits(self.transformer, mesh)}
        if self.library is None:
            self._graphs["loss"] = Loss(self.transformer, mesh)
        else:
            self._graphs["loss"] = NativeLoss(self.library, self.native_parameters())
        if seed is not None:
            begin(self.weights(), expected_shapes(config), config, mesh, seed)
        if self.setup.lora is not None:
            self.begin_adapters(seed or 0)

    def begin_adapters(self, seed: int) -> None:
        """Give the adapters their first values: with them the model answers as its base does."""
        assert self.setup.lora is not None
        begin(self.adapters(), self.whole_shapes(), self.config, self.setup.mesh, seed)

    def construct(self, ids: Any) -> Any:
        """ids (B, T) int32 -> logits (B, T, V) float32, as a MindSpore cell"""
        return self._graphs["logits"](ids)

    def weights(self) -> dict[str, Any]:
        """Full name -> MindSpore parameter, in the order of a complete checkpoint."""
        found = dict(self.parameters_and_names())
        return {name: found[name] for name in expected_shapes(self.config)}

    def adapters(self) -> dict[str, Any]:
        """Full name -> MindSpore parameter of the adapters, in the order of their layers; empty without adapters."""
        if self.setup.lora is None:
            return {}
        found = dict(self.parameters_and_names())
        return {name: found[name] for name in adapter_shapes(self.config, self.setup.lora)}

    def trainable(self) -> dict[str, Any]:
        """What training changes: the adapters where there are some, else all weights."""
        return self.adapters() or self.weights()

    def native_parameters(self) -> NativeParameters:
        """The parameters as the native library's operators take them."""
        return NativeParameters(
            self.config, self.weights(), self.adapters(), self.setup.lora, dropout=self.setup.dropout
        )

    def whole_shapes(self) -> dict[str, tuple[int, ...]]:
        """Full name -> shape of what training changes, undivided."""
        lora = self.setup.lora
        return expected_shapes(self.config) if lora is None else adapter_shapes(self.config, lora)

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Load full name -> array, each cast to the type of its parameter; arrays are read one at a time.

        `arrays` may be an open checkpoint, whose shapes are known without reading it. Raises InputError that lists
        missing, unknown and misshapen names. Masks and caches of the original's files are passed over.
        """
        match_names(_shapes_of(arrays), self.config, where=getattr(arrays, "path", None))
        _fill(self.weights(), arrays, self.setup.mesh)

    def load_adapters(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Load the adapters, full name -> array; other names are passed over. Raises InputError for missing ones."""
        fill_adapters(self.adapters(), arrays, self.config, self.setup)

    def state(self) -> dict[str, np.ndarray]:
        """Full name -> array of this process's weights, a copy: on a CPU MindSpore's own change with later steps."""
        return {name: parameter.asnumpy().copy() for name, parameter in self.weights().items()}

    def logits(self, input_ids: Any) -> np.ndarray:
        """(B, T) ints -> (B, T, V) float32."""
        check_types(self.config)
        ids = self._checked(input_ids)
        tokens = ids.shape[1]
        padded = _pad(ids, bucket(tokens, self.config.seq_length))
        return self._graphs["logits"](Tensor(padded)).asnumpy()[:, :tokens]

    def loss(self, input_ids: Any, loss_mask: Any = None, alignment: Alignment = "target") -> float:
        """(B, T+1) ints, mask (B, T+1) of 0 and 1 by token -> the loss; no mask: every token counts."""
        ids = self._checked(input_ids, extra=1)
        mask = np.ones(ids.shape, np.float32) if loss_mask is None else np.asarray(loss_mask, np.float32)
        if mask.shape != ids.shape:
            raise ValueError(f"loss_mask is {mask.shape}, input_ids are {ids.shape}")
        size = bucket(ids.shape[1] - 1, self.config.seq_length)
        inputs, targets, weights = ids[:, :-1], ids[:, 1:], align(mask, alignment)
        tensors = (Tensor(_pad(array, size)) for array in (inputs, targets, weights))
        with operator_failures():
            return float(self._graphs["loss"](*tensors).asnumpy())

    def attention_choice(self, batch: int, tokens: int) -> Choice:
        """Which attention backend computes a batch of that shape, and why."""
        return choose_backend(self.config, device(), batch, bucket(tokens, self.config.seq_length))

    def describe_training(self, batch: int, tokens: int) -> str:
        """What computes losses and gradients of batches of that shape, and why, in a sentence or two."""
        if self.library is not None:
            return f"training by {self.training_choice}"
        choice = self.attention_choice(batch, tokens)
        return f"training by {self.training_choice}; attention: {choice.backend} ({choice.reason})"

    def _checked(self, input_ids: Any, extra: int = 0) -> np.ndarray:
        ids = np.asarray(input_ids)
        if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 1 + extra or not np.issubdtype(ids.dtype, np.integer):
            found = f"{ids.dtype} {ids.shape}"
            raise ValueError(f"input_ids must be integers of shape (B, T) with T > {extra}, got {found}")
        if ids.shape[1] - extra > self.config.seq_length:
            raise ValueError(f"{ids.shape[1] - extra} tokens are more than the context of {self.config.seq_length}")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            last = self.config.vocab_size - 1
            raise ValueError(f"input_ids go from {ids.min()} to {ids.max()}, the vocabulary is 0 to {last}")
        return ids.astype(np.int32)


class WholeLogits(nn.Cell):
    """Hidden states (N, C) and the table -> logits (N, V) float32 over the whole vocabulary, in every process."""

    def __init__(self, model: SparkModel, mesh: Mesh) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.divided = mesh.model.size > 1
        self.gather = all_gather(mesh.model)

    def construct(self, hidden: Any, table: Any) -> Any:
        logits = self.model.logits(hidden, table)
        return self.gather(logits.transpose()).transpose() if self.divided else logits


class _Logits(nn.Cell):
    def __init__(self, model: SparkModel, mesh: Mesh) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.whole = WholeLogits(model, mesh)

    def construct(self, ids: Any) -> Any:
        hidden, _, _ = self.model(ids)
        return self.whole(hidden, self.model.table()).reshape((*ids.shape, -1))


def _pad(array: np.ndarray, tokens: int) -> np.ndarray:
    """Pad (B, T) with zeros on the right: no token sees what comes after it."""
    return np.ascontiguousarray(np.pad(array, ((0, 0), (0, tokens - array.shape[1]))))


def begin(
    parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], config: SparkConfig, mesh: Mesh, seed: int
) -> None:
    """Give parameters, full name -> MindSpore parameter, their first values, those of their part of the whole."""
    for name, parameter in parameters.items():
        set_parameter(parameter, mesh.part_of(name, initial_value(name, shapes[name], config, seed)))


def fill_adapters(
    parameters: Mapping[str, Any], arrays: Mapping[str, np.ndarray], config: SparkConfig, setup: Setup
) -> None:
    """Load adapters, full name -> array; other names are passed over. Raises InputError for missing ones."""
    assert setup.lora is not None
    match_adapters(_shapes_of(arrays), config, setup.lora, where=getattr(arrays, "path", None))
    _fill(parameters, arrays, setup.mesh)


def _fill(parameters: Mapping[str, Any], arrays: Mapping[str, np.ndarray], mesh: Mesh) -> None:
    for name, parameter in parameters.items():
        set_parameter(parameter, mesh.part_of(name, np.asarray(arrays[name])))


def _shapes_of(arrays: Mapping[str, np.ndarray]) -> Mapping[str, tuple[int, ...]]:
    return arrays.shapes() if hasattr(arrays, "shapes") else {name: np.shape(arrays[name]) for name in arrays}


def set_parameter(parameter: Any, array: np.ndarray) -> None:
    """Give a MindSpore parameter the values of an array of its shape, cast to its type."""
    memory = memory_of(parameter)
    if memory is not None:
        memory[...] = array
        return
    if array.dtype.name == "bfloat16":  # of ml_dtypes, which MindSpore's Tensor does not take
        array = array.astype(np.float32)
    parameter.set_data(Tensor(array, parameter.dtype))


def memory_of(parameter: Any) -> np.ndarray | None:
    """A parameter's own memory, which on a CPU NumPy may write to: nothing is held twice. None elsewhere."""
    if device() != "cpu":
        return None
    memory = parameter.asnumpy()
    own = memory.flags.writeable and memory.ctypes.data == parameter.data_ptr()
    return memory if own else None
