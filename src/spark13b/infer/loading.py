"""A model ready to answer: its weights streamed from whatever holds them into parameters of the compute type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark13b.ckpt.merging import merged
from spark13b.model.causal_lm import SparkForCausalLM
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
        model.load_state(base)
        if lora is not None and parts.adapters is not None:
            model.load_adapters(parts.adapters.tensors)
    return model, doubt
