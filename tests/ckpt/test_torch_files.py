"""torch reads what we write, we read what torch writes, and no pickle runs anything."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ckpt_samples import same_bytes, torch_state

from spark13b.ckpt import open_checkpoint, write_checkpoint
from spark13b.errors import InputError

torch = pytest.importorskip("torch", reason="compared with torch where it is installed: pip install -e .[torch]")


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("planned", [True, False])
def test_torch_loads_our_files_safely(mmap: bool, planned: bool, tmp_path: Path, every_dtype: dict) -> None:
    write_checkpoint(tmp_path / "x.ckpt", every_dtype)
    with open_checkpoint(tmp_path / "x.ckpt") as source:
        write_checkpoint(tmp_path / "x.pt", source if planned else source.items(), "torch", metadata={"a": "b"})
    loaded = torch.load(tmp_path / "x.pt", weights_only=True, mmap=mmap)
    assert list(loaded) == list(every_dtype)
    for name, array in every_dtype.items():
        tensor = loaded[name]
        assert tuple(tensor.shape) == array.shape and str(tensor.dtype) == f"torch.{array.dtype.name}"
        if array.size and array.shape:
            assert _numpy(tensor).tobytes() == array.tobytes(), name
    assert loaded["one_number"].item() == 300001


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_we_read_what_torch_saves(legacy: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    state = torch_state(dtype)
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        tensors = {name: value for name, value in state.items() if value is not None}
        assert list(checkpoint) == list(tensors)
        for name, tensor in tensors.items():
            assert checkpoint[name].tobytes() == _numpy(tensor).tobytes(), name
            assert checkpoint.has_checksum(name) is not legacy


@pytest.mark.parametrize("legacy", [False, True])
def test_views_shared_storages_and_parameters_are_read(legacy: bool, tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    module = torch.nn.Linear(3, 2)
    state = {
        "whole": base,
        "transposed": base.T,
        "window": base[1:3, 2:5],
        "expanded": base[0, :1].expand(5),
        "tied": base,
        "parameter": module.weight,
        "scalar": base[3, 5],
    } | module.state_dict(prefix="linear.")
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        for name, tensor in state.items():
            assert same_bytes(checkpoint[name], tensor.detach().contiguous().numpy()), name


def test_a_state_dict_nested_one_level_is_flattened(tmp_path: Path) -> None:
    state = torch_state()
    torch.save({"model": state, "iteration": 7, "args": None, "optimizer": {"lr": 1e-3}}, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert list(checkpoint) == [name for name, value in state.items() if value is not None]
    torch.save({"model": state, "ema": state}, tmp_path / "twice.pt")
    with pytest.raises(InputError, match="stands twice"):
        open_checkpoint(tmp_path / "twice.pt")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="no state dict"):
        open_checkpoint(tmp_path / "list.pt")


def test_megatron_s_options_and_bytes_beside_the_weights_are_passed_over(tmp_path: Path) -> None:
    from argparse import Namespace

    extra = io.BytesIO(b"state of the transformer engine")
    torch.save({"args": Namespace(lr=1), "model": {"a": torch.ones(2), "a._extra_state": extra}}, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert list(checkpoint) == ["a"]


def test_shards_that_transformers_would_write_open_as_one(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    weight_map = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    index = {"metadata": {"total_size": 20}, "weight_map": weight_map}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "torch" and checkpoint["b"].tolist() == [0, 0, 0]


class _Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare", "hidden in the system's place"])
def test_a_pickle_that_runs_code_is_refused_and_nothing_runs(kind: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "executed", tmp_path / "x.pt"
    attack = _Attack(trace)
    if kind == "bare":
        path.write_bytes(pickle.dumps({"a": attack}))
    elif kind == "hidden in the system's place":
        torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
        start = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
        assert path.read_bytes().startswith(start)
        path.write_bytes(start + pickle.dumps(attack, 2) + path.read_bytes()[len(start) :])
    else:
        torch.save({"a": torch.ones(2), "b": attack}, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(InputError, match=r"refused: its pickle asks for 'posix\.system'|bare pickle") as caught:
        open_checkpoint(path)
    assert not trace.exists() and str(path) in caught.value.message()
    if kind == "zip":  # the attack works where it is let
        torch.load(path, weights_only=False)
        assert trace.exists()


@pytest.mark.parametrize(
    "name", [("builtins", "eval"), ("builtins", "getattr"), ("os", "popen"), ("torch", "load"), ("numpy", "load")]
)
def test_no_other_name_is_reachable(name: tuple[str, str], tmp_path: Path) -> None:
    program = pickle.PROTO + b"\x02" + pickle.GLOBAL + f"{name[0]}\n{name[1]}\n".encode() + pickle.STOP
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(InputError, match="could run code"):
        open_checkpoint(tmp_path / "x.pt")


def test_a_zip_that_is_no_torch_file_is_said_to_be_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    with pytest.raises(InputError, match="not a torch checkpoint"):
        open_checkpoint(tmp_path / "x.npz")


@pytest.mark.parametrize("place", [6, 42])  # of an entry of the directory: the version it needs, where its record is
def test_a_damaged_directory_of_a_zip_is_said_to_be_damage(tmp_path: Path, place: int) -> None:
    write_checkpoint(tmp_path / "a.pt", {"w": np.ones(2, np.float32)}, "torch")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + place : entry + place + 2] = b"\xff\xff"
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(InputError, match=r"damaged|cut off|truncated"):
        open_checkpoint(tmp_path / "a.pt")
