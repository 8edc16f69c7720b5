"""A model ready to answer: its weights streamed from whatever holds them into parameters of the compute type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spark13b.ckpt.dtypes import PIECE
from spark13b.ckpt.merging import merged
from spark13b.ckpt.streams import blocks_of
from spark13b.ckpt.tensors import Checkpoint
from spark13b.model.causal_lm import SparkForCausalLM, memory_of, set_parameter
from spark13b.model.device import check_machine
from spark13b.model.mesh import ALONE, Mesh
from spark13b.model.names import match_names
from spark13b.model.transformer import Setup

if TYPE_CHECKING:
    from spark13b.infer.session import FoundModel


def load_model(found: FoundModel, mesh: Mesh | None = None, fold: bool = False) -> tuple[SparkForCausalLM, str | None]:
    """The model, and a sentence about what may not be meant, or None.

    Weights are read one at a time and stored in the compute type (embedding and norms in their own), which is what
    their products need. Adapters stay beside them, or with `fold` are added to them. Raises InputError when names or
    shapes do not fit, before anything is allocated.
    """
    check_machine(found.preset)
    config = found.preset.model.model_copy(update={"param_init_type": found.preset.model.compute_type})
    with found.weights.open(config) as parts:
        doubt, lora, base = parts.doubt(), parts.lora, parts.base
        if fold and parts.adapters is not None:
            base, lora = merged(base, parts.adapters), None
        match_names(base.shapes(), config, where=base.path)
        model = SparkForCausalLM(config, seed=None, setup=Setup(mesh=mesh or ALONE, lora=lora))
        if mesh is None:
            _stream(base, model)
        else:
            model.load_state(base)  # each process takes its part
        if lora is not None and parts.adapters is not None:
            model.load_adapters(parts.adapters.tensors)
    return model, doubt


def _stream(base: Checkpoint, model: SparkForCausalLM) -> None:
    """Load weights a piece of a file at a time into the parameters' own memory, so that nothing is held twice."""
    for name, parameter in model.weights().items():
        memory = memory_of(parameter)
        if memory is None:  # an NPU's: tensor by tensor
            set_parameter(parameter, base.read(name))
            continue
        flat, done, dtype = memory.reshape(-1), 0, base.infos[name].dtype
        for block in blocks_of(base.pieces(name), PIECE):
            values = np.frombuffer(block, dtype)
            flat[done : done + values.size] = values
            done += values.size
