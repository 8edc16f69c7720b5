"""Truncated and bit-flipped files are found, and the message names file, tensor and byte."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest

from spark13b.ckpt import open_checkpoint, write_checkpoint
from spark13b.errors import InputError

FORMATS = ("ckpt", "safetensors", "torch")
TENSORS = {f"layer.{n}.weight": np.full((40, 30), n + 1, np.float32) for n in range(12)}


def read_all(path: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(path) as checkpoint:
        return dict(checkpoint)


@pytest.fixture(params=FORMATS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file whose tensors are known beforehand, as the commands write it."""
    write_checkpoint(tmp_path / "first", TENSORS)
    with open_checkpoint(tmp_path / "first") as source:
        write_checkpoint(tmp_path / f"x.{request.param}", source, request.param)
    return tmp_path / f"x.{request.param}"


def test_a_truncated_file_is_named_with_the_tensor_and_the_byte(path: Path) -> None:
    whole = path.read_bytes()
    for number in (3, 7, 11):
        pattern = TENSORS[f"layer.{number}.weight"].tobytes()
        cut = whole.index(pattern) + len(pattern) // 2
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError) as caught:
            read_all(path)
        assert f"tensor 'layer.{number}.weight'" in caught.value.what or path.suffix == ".safetensors"
        assert f"{cut:,}" in caught.value.what and caught.value.where == str(path)
        assert re.search(r"tensor 'layer\.\d+\.weight' is cut off at byte", caught.value.what)


def test_a_file_cut_anywhere_is_never_read_in_silence(path: Path) -> None:
    whole = path.read_bytes()
    rng = random.Random(5)
    cuts = {rng.randrange(1, len(whole)) for _ in range(60)} | {len(whole) - 1}
    cuts |= {whole.index(array.tobytes()) + array.nbytes + 6 for array in TENSORS.values()}  # between two
    for cut in cuts - {len(whole) + extra for extra in range(7)}:
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError) as caught:
            read_all(path)
        assert caught.value.where == str(path)


def test_a_flipped_bit_in_a_tensor_is_found_and_named(path: Path) -> None:
    whole = path.read_bytes()
    rng = random.Random(6)
    for name, array in TENSORS.items():
        start = whole.index(array.tobytes())
        at, bit = start + rng.randrange(array.nbytes), rng.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        with pytest.raises(InputError) as caught:
            read_all(path)
        assert f"tensor '{name}' does not match its checksum" in caught.value.what
        low, high = (
            int(text.replace(",", "")) for text in re.findall(r"bytes ([\d,]+) to ([\d,]+)", caught.value.what)[0]
        )
        assert low <= at < high
        others = [other for other in TENSORS if other != name]
        with open_checkpoint(path) as checkpoint:
            assert all(np.array_equal(checkpoint[other], TENSORS[other]) for other in others)


def test_a_flipped_bit_anywhere_changes_no_number_in_silence(path: Path) -> None:
    whole = path.read_bytes()
    rng = random.Random(7)
    for at in sorted(rng.randrange(len(whole)) for _ in range(300)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        try:
            tensors = read_all(path)
        except InputError:
            continue
        for name, array in tensors.items():  # names may differ, in a header; numbers never
            assert name not in TENSORS or np.array_equal(array, TENSORS[name])


def test_mindspore_s_own_checksum_over_the_file_is_verified(tmp_path: Path) -> None:
    import mindspore

    from spark13b.ckpt.inspecting import problems

    path = tmp_path / "x.ckpt"
    mindspore.save_checkpoint([{"name": "a", "data": mindspore.Tensor([1.0, 2.0])}], str(path), crc_check=True)
    path.chmod(0o600)
    with open_checkpoint(path) as checkpoint:
        assert list(problems(checkpoint, None)) == []
    whole = bytearray(path.read_bytes())
    whole[whole.index(np.float32(2.0).tobytes())] ^= 1
    path.write_bytes(whole)
    with open_checkpoint(path) as checkpoint:
        (problem,) = problems(checkpoint, None)
    assert "MindSpore's checksum" in problem.what


def test_random_bytes_never_crash_the_reader(tmp_path: Path) -> None:
    rng = random.Random(8)
    heads = [
        b"\x0a\x20\x0a\x01a\x12",
        b"PK\x03\x04",
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        b"\x40" + b"\0" * 7 + b"{",
    ]
    for head in heads * 50:
        (tmp_path / "x").write_bytes(head + rng.randbytes(rng.randrange(200)))
        with pytest.raises(InputError):
            read_all(tmp_path / "x")
