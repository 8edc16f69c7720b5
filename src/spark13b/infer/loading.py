"""A model ready to answer: its weights streamed from whatever holds them into the memory of what computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from spark13b.ckpt.adapters import OpenParts
from spark13b.ckpt.merging import merged
from spark13b.ckpt.quantized import QuantizedCheckpoint, need_quantized, refuse_folding
from spark13b.ckpt.streams import read_into
from spark13b.ckpt.tensors import Checkpoint
from spark13b.config.model import SparkConfig
from spark13b.infer.native_model import NativeModel, open_native, read_adapters
from spark13b.model.device import Device, check_machine, surely_cpu
from spark13b.model.mesh import ALONE, Mesh
from spark13b.model.names import match_names
from spark13b.model.native_choice import answering_problem
from spark13b.native.library import find_library

if TYPE_CHECKING:
    from spark13b.infer.session import FoundModel
    from spark13b.model.causal_lm import SparkForCausalLM


def load_model(
    found: FoundModel, fold: bool = False, opened: OpenParts | None = None
) -> tuple[SparkForCausalLM | NativeModel, str | None]:
    """The model, and a sentence about what may not be meant, or None. `opened`: its files, if they are open already.

    Where the native library can compute it, MindSpore is not even loaded. Weights are read one at a time and stored in
    the compute type (embedding and norms in their own), which is what their products need. Adapters stay beside them,
    or with `fold` are added to them. The native library uses quantised weights where their file is mapped into
    memory; MindSpore gets what they stand for. Raises InputError when names or shapes do not fit, before anything is
    allocated.
    """
    with _fitting(found, fold, opened) as (parts, base, config):
        library = find_library().library
        device: Device = "cpu" if surely_cpu() else "ascend"
        if library is not None and answering_problem(config, device, 1) is None:
            adapters = None if fold or parts.adapters is None else read_adapters(parts.adapters, config)
            return open_native(base, config, library, adapters), parts.doubt()
        doubts = [parts.doubt(), _widened(base, config)]
        return _load_graphs(base, parts, config, ALONE, fold), "; ".join(filter(None, doubts)) or None


def load_part(
    found: FoundModel, mesh: Mesh, fold: bool = False, opened: OpenParts | None = None
) -> tuple[SparkForCausalLM, str | None]:
    """The same for one of several processes that share the model: its part."""
    with _fitting(found, fold, opened) as (parts, base, config):
        return _load_graphs(base, parts, config, mesh, fold), parts.doubt()


def _widened(base: Checkpoint, config: SparkConfig) -> str | None:
    """A sentence when quantised weights are not used as they are."""
    if not isinstance(base, QuantizedCheckpoint):
        return None
    return f"{base.path} is quantised, and its weights become {config.compute_type}: only the native library reads them"


@contextmanager
def _fitting(
    found: FoundModel, fold: bool, opened: OpenParts | None
) -> Iterator[tuple[OpenParts, Checkpoint, SparkConfig]]:
    """The parts, the base with what is folded into it, and the shape to load them into; names and shapes fit."""
    check_machine(found.preset)
    config = found.preset.model.model_copy(update={"param_init_type": found.preset.model.compute_type})
    with found.weights.open(config) if opened is None else nullcontext(opened) as parts:
        base = parts.base
        if fold and parts.adapters is not None:
            refuse_folding(base)
            base = merged(base, parts.adapters)
        match_names(base.shapes(), config, where=base.path)
        need_quantized(base, config.weight_bits)
        yield parts, base, config


def _load_graphs(base: Checkpoint, parts: OpenParts, config: SparkConfig, mesh: Mesh, fold: bool) -> SparkForCausalLM:
    """The model that MindSpore computes."""
    from spark13b.model.causal_lm import SparkForCausalLM
    from spark13b.model.device import check_types
    from spark13b.model.transformer import Setup

    check_types(config)
    lora = None if fold else parts.lora
    model = SparkForCausalLM(config, seed=None, setup=Setup(mesh=mesh, lora=lora))
    if mesh.world.size == 1:
        _stream(base, model)
    else:
        model.load_state(base)  # each process takes its part
    if lora is not None and parts.adapters is not None:
        model.load_adapters(parts.adapters.tensors)
    return model


def _stream(base: Checkpoint, model: SparkForCausalLM) -> None:
    """Load weights a piece of a file at a time into the parameters' own memory, so that nothing is held twice."""
    from spark13b.model.causal_lm import memory_of, set_parameter

    for name, parameter in model.weights().items():
        memory = memory_of(parameter)
        if memory is None:  # an NPU's: tensor by tensor
            set_parameter(parameter, base.read(name))
            continue
        read_into(base, name, memory)
