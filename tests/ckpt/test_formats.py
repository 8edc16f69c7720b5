"""Every format holds every number bit for bit, and the programs that own the formats read what we write."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from ckpt_samples import same_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from spark13b.ckpt import open_checkpoint, to_float32, write_checkpoint
from spark13b.errors import InputError

FORMATS = {"ckpt": "x.ckpt", "safetensors": "x.safetensors", "torch": "x.pt"}


@pytest.mark.parametrize("format", FORMATS)
def test_every_number_format_comes_back_bit_for_bit(format: str, tmp_path: Path, every_dtype: dict) -> None:
    path = tmp_path / FORMATS[format]
    written = write_checkpoint(path, every_dtype.items(), format, metadata={"note": "text, 文字"})
    assert written.tensors == len(every_dtype) and written.nbytes == sum(a.nbytes for a in every_dtype.values())
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == format and list(checkpoint) == list(every_dtype)
        assert checkpoint.metadata == {"note": "text, 文字"}
        for name, array in every_dtype.items():
            assert same_bytes(checkpoint[name], array), name
            assert checkpoint.infos[name].nbytes == array.nbytes and checkpoint.has_checksum(name)


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_conversion_there_and_back_is_exact(first: str, second: str, tmp_path: Path, every_dtype: dict) -> None:
    write_checkpoint(tmp_path / "a", every_dtype, first)
    with open_checkpoint(tmp_path / "a") as a:
        write_checkpoint(tmp_path / "b", a, second, metadata=a.metadata)
    with open_checkpoint(tmp_path / "b") as b:
        write_checkpoint(tmp_path / "c", b, first, metadata=b.metadata)
    with open_checkpoint(tmp_path / "c") as c:
        assert all(same_bytes(c[name], array) for name, array in every_dtype.items())
    if first != "torch":  # its list of tensors stands first or last, as they are known before or not
        assert (tmp_path / "a").read_bytes()[-64:] == (tmp_path / "c").read_bytes()[-64:]


def test_mindspore_loads_equal_tensors_from_our_files(tmp_path: Path, every_dtype: dict) -> None:
    import mindspore

    for format in ("ckpt", "safetensors"):
        path = tmp_path / FORMATS[format]
        write_checkpoint(path, every_dtype, format, metadata={"note": "文字"})
        loaded = mindspore.load_checkpoint(str(path), format=format)
        for name, array in every_dtype.items():
            value = loaded[name].asnumpy()
            assert value.dtype.name == array.dtype.name and value.shape == array.shape, name
            assert value.tobytes() == array.tobytes(), name
        assert format != "ckpt" or loaded["note"] == "文字"


@pytest.mark.parametrize("options", [{}, {"crc_check": True}, {"format": "safetensors"}])
def test_we_read_what_mindspore_saves(options: dict, tmp_path: Path, every_dtype: dict) -> None:
    import mindspore

    path = tmp_path / FORMATS[options.get("format", "ckpt")]
    tensors = [{"name": name, "data": mindspore.Tensor(array)} for name, array in every_dtype.items() if array.size]
    extras = {} if options.get("format") else {"append_dict": {"epoch": 3, "who": "某人"}}
    mindspore.save_checkpoint(tensors, str(path), **extras, **options)
    with open_checkpoint(path) as checkpoint:
        for name, array in every_dtype.items():
            assert not array.size or same_bytes(checkpoint[name], array), name
        if extras:
            assert checkpoint.metadata == {"who": "某人"} and checkpoint["epoch"] == 3


def test_tensors_above_512_mb_are_sliced_as_mindspore_does(memory_folder: Path) -> None:
    import mindspore

    tmp_path = memory_folder
    big = np.arange(130 << 20, dtype=np.float32).reshape(-1, 1024)  # 520 MiB
    mindspore.save_checkpoint([{"name": "big", "data": mindspore.Tensor(big)}], str(tmp_path / "theirs.ckpt"))
    with open_checkpoint(tmp_path / "theirs.ckpt") as theirs:
        assert np.array_equal(theirs["big"], big)
        write_checkpoint(tmp_path / "ours.ckpt", theirs)
    assert np.array_equal(mindspore.load_checkpoint(str(tmp_path / "ours.ckpt"))["big"].asnumpy(), big)


def test_safetensors_own_library_reads_our_files(tmp_path: Path, every_dtype: dict) -> None:
    from safetensors import safe_open

    write_checkpoint(tmp_path / "planned.safetensors", every_dtype, "safetensors")
    write_checkpoint(tmp_path / "streamed.safetensors", iter(every_dtype.items()), "safetensors")
    for name in ("planned", "streamed"):
        with safe_open(tmp_path / f"{name}.safetensors", framework="numpy") as file:
            assert set(file.keys()) == set(every_dtype)
            assert np.array_equal(file.get_tensor("t.float32"), every_dtype["t.float32"])


def test_a_header_longer_than_its_room_moves_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark13b.ckpt.safetensors_file._ROOM", 64)
    monkeypatch.setattr("spark13b.ckpt.safetensors_file.PIECE", 128)
    tensors = {f"t{n}": np.full((50,), n, np.float32) for n in range(40)}
    write_checkpoint(tmp_path / "x.safetensors", iter(tensors.items()), "safetensors")
    with open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        assert all(np.array_equal(checkpoint[name], array) for name, array in tensors.items())


def test_shards_are_no_larger_than_asked_and_open_as_one(tmp_path: Path, weights: Path, golden_weights: dict) -> None:
    for format, index in (("safetensors", "model.safetensors.index.json"), ("torch", "pytorch_model.bin.index.json")):
        with open_checkpoint(weights) as source:
            written = write_checkpoint(tmp_path / format, source, format, shard_size=100_000)
        weight_map = json.loads((tmp_path / format / index).read_text())["weight_map"]
        assert len(set(weight_map.values())) == len(written.files) - 1 > 2
        for file in set(weight_map.values()):
            names = [name for name in weight_map if weight_map[name] == file]
            assert sum(golden_weights[name].nbytes for name in names) <= 100_000 or len(names) == 1
        with open_checkpoint(tmp_path / format) as merged:
            assert all(same_bytes(merged[name], array) for name, array in golden_weights.items())
    next((tmp_path / "safetensors").glob("model-00001-*")).unlink()
    with pytest.raises(InputError, match=r"shard .* is missing"):
        open_checkpoint(tmp_path / "safetensors")


def test_an_index_that_points_outside_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(InputError, match="outside the folder"):
        open_checkpoint(tmp_path)


CHARACTERS = st.characters(exclude_categories=["Cs"])
NAMES = st.text(CHARACTERS, min_size=1, max_size=20).filter(lambda name: name != "__metadata__")


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=6))
def test_any_names_and_shapes_come_back(shapes: dict) -> None:
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        for format in FORMATS:
            write_checkpoint(Path(folder) / format, tensors, format)
            with open_checkpoint(Path(folder) / format) as checkpoint:
                assert checkpoint.shapes() == {name: array.shape for name, array in tensors.items()}


def test_the_one_name_that_safetensors_keeps_for_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="named '__metadata__'"):
        write_checkpoint(tmp_path / "x", [("__metadata__", np.ones(1))], "safetensors")


def test_the_format_is_found_by_content_not_by_suffix(tmp_path: Path, golden_weights: dict) -> None:
    for format in FORMATS:
        write_checkpoint(tmp_path / "data.bin", golden_weights, format, force=True)
        with open_checkpoint(tmp_path / "data.bin") as checkpoint:
            assert checkpoint.format == format


def test_a_tensor_is_read_only_when_it_is_looked_up(weights: Path, golden_weights: dict) -> None:
    with open_checkpoint(weights) as checkpoint:
        name = "transformer.transformer.layers.0.mlp.fc0.bias"
        assert name in checkpoint and len(checkpoint) == len(golden_weights)
        first = checkpoint[name]
        first += 1  # the caller owns it
        assert np.array_equal(checkpoint[name], golden_weights[name])
        with pytest.raises(KeyError, match=r"nearest name is .*layers\.0\.mlp\.fc0\.bias"):
            checkpoint["transformer.transformer.layers.0.mlp.fc0.bais"]
    with pytest.raises(ValueError, match="closed"):
        checkpoint[name]


def test_bfloat16_widens_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = to_float32(bits.view(ml_dtypes.bfloat16))
    assert np.array_equal(wide.view(np.uint32), bits.astype(np.uint32) << 16)


def test_bfloat16_of_mindspore_is_taken(tmp_path: Path) -> None:
    import mindspore

    array = mindspore.Tensor([1.5, -2.25], mindspore.bfloat16).asnumpy()
    write_checkpoint(tmp_path / "x.ckpt", [("a", array)])
    with open_checkpoint(tmp_path / "x.ckpt") as checkpoint:
        assert to_float32(checkpoint["a"]).tolist() == [1.5, -2.25]


def test_opening_and_writing_load_neither_mindspore_nor_torch(weights: Path) -> None:
    code = (
        "import sys; from spark13b.ckpt import open_checkpoint, write_checkpoint\n"
        f"c = open_checkpoint({str(weights)!r})\n"
        f"write_checkpoint({str(weights) + '.pt'!r}, c, 'torch'); open_checkpoint({str(weights) + '.pt'!r})\n"
        "print([m for m in ('mindspore', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00K\x01.", "bare pickle"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"hello world, this is no checkpoint", "this is no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_said(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(InputError, match=says):
        open_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize("mode", ["AES-GCM", "AES-CBC", "SM4-CBC"])
def test_an_encrypted_checkpoint_is_said_to_be_so(mode: str, tmp_path: Path) -> None:
    import mindspore

    path = tmp_path / "x.ckpt"
    tensors = [{"name": "a", "data": mindspore.Tensor([1.0])}]
    mindspore.save_checkpoint(tensors, str(path), enc_key=b"0123456789abcdef", enc_mode=mode)
    with pytest.raises(InputError, match="encrypted"):
        open_checkpoint(path)


def test_folders_that_leave_a_choice_are_refused(tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "run"
    (folder / "rank_0").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no checkpoint"):
        open_checkpoint(folder)
    (folder / "rank_0" / "a.ckpt").write_bytes(weights.read_bytes())
    assert len(open_checkpoint(folder)) == 39
    (folder / "optimizer.ckpt").write_bytes(b"not looked at")
    assert len(open_checkpoint(folder)) == 39
    (folder / "rank_0" / "b.ckpt").write_bytes(weights.read_bytes())
    with pytest.raises(InputError, match=r"2 checkpoints: a\.ckpt, b\.ckpt"):
        open_checkpoint(folder)
    (folder / "rank_0" / "b.ckpt").unlink()
    (folder / "rank_1").mkdir()
    with pytest.raises(InputError, match="slices of 2 ranks"):
        open_checkpoint(folder)
