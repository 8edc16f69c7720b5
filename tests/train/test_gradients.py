"""Where each parameter lies, by the same rule as the files of slices."""

from __future__ import annotations

import numpy as np
import pytest

from spark13b.ckpt.layout import Layout, cut_of
from spark13b.ckpt.tensors import TensorInfo
from spark13b.config.sections import LoraConfig
from spark13b.model.mesh import Group, Mesh
from spark13b.model.names import adapter_shapes, expected_shapes
from spark13b.train.placement import placement
from train.test_step import CONFIG

SHAPES = expected_shapes(CONFIG.model_copy(update={"vocab_size": 20})) | adapter_shapes(CONFIG, LoraConfig())


@pytest.mark.parametrize("shard", [True, False])
@pytest.mark.parametrize(("data", "model"), [(1, 2), (2, 1), (2, 2), (4, 2)])
def test_parameters_and_their_state_are_cut_as_slices_are(data: int, model: int, shard: bool) -> None:
    mesh = Mesh(Group("m", model, 1 % model), Group("d", data, 1 % data), Group("w", data * model, 1))
    layout = Layout(data, model, shard)
    for name, shape in SHAPES.items():
        whole = np.arange(np.prod(shape)).reshape(shape)
        weight = cut_of(TensorInfo(name, shape, np.dtype("f4")), layout)
        rank = mesh.data.index * model + mesh.model.index
        np.testing.assert_array_equal(mesh.part_of(name, whole), weight.part(whole, layout, rank))
        assert mesh.part_shape(name, shape) == weight.part_info(layout).shape
        state = cut_of(TensorInfo(f"adam_m.{name}", shape, np.dtype("f4")), layout)
        placed = placement(name, mesh.part_shape(name, shape), mesh, shard)
        assert (placed.cut, placed.sharded) == (state.axis is not None, state.sharded), name


def test_gradients_are_summands_where_every_process_adds_to_the_same_output_or_sees_other_rows() -> None:
    group = Group("m", 2, 0)
    layer = "transformer.transformer.layers.0."
    partial = {
        *(f"{layer}attention.out_proj.bias", f"{layer}mlp.fc2.bias"),
        *(f"{layer}attention.{name}_proj.mindpet_delta_lora_a" for name in "qkv"),
        *(f"{layer}mlp.{name}.mindpet_delta_lora_a" for name in ("fc0", "fc1")),
        *(f"{layer}attention.out_proj.mindpet_delta_lora_b", f"{layer}mlp.fc2.mindpet_delta_lora_b"),
    }
    norms = {name for name in SHAPES if name.endswith((".gamma", ".beta"))}
    for sequence_parallel, expected in ((False, partial), (True, partial | norms)):
        mesh = Mesh(group, Group(), group, sequence_parallel)
        found = {name for name, shape in SHAPES.items() if placement(name, shape, mesh, False).partial}
        assert found == expected
