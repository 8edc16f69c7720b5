"""`ckpt quantize` and its files: what is rounded and how far, reading them, damage."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from spark13b.ckpt import BFLOAT16, expected_shapes, open_checkpoint, to_float32, write_checkpoint
from spark13b.ckpt.inspecting import bytes_by_dtype, problems
from spark13b.ckpt.quantized import QuantizedCheckpoint
from spark13b.ckpt.quantizing import Wanted, quantize_checkpoint
from spark13b.config import SparkConfig
from spark13b.errors import InputError, SparkError
from spark13b.native.packing import LEVELS, dequantize, in_rows, in_strips, pack, quantize, unpack

CONFIG = SparkConfig(num_layers=2, hidden_size=128, num_heads=2, ffn_hidden_size=320, vocab_size=50)
Q_PROJ = "transformer.transformer.layers.0.attention.q_proj.weight"
EMBEDDING = "transformer.embedding.word_embeddings.embedding_table"
FC2 = "transformer.transformer.layers.1.mlp.fc2.weight"  # rows of 160 fit in groups of 32 only


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in a .ckpt file, with training state beside it."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in expected_shapes(CONFIG).items()}
    path = tmp_path_factory.mktemp("quantized") / "model.ckpt"
    write_checkpoint(path, arrays | {"adam_m." + Q_PROJ: arrays[Q_PROJ], "global_step": np.array(3)})
    return path


def made(source: Path, target: Path, bits: int, **more: object) -> QuantizedCheckpoint:
    """`source` quantised into `target`, opened."""
    wanted = Wanted(bits, **{"embedding_bits": 16, **more})  # type: ignore[arg-type]
    with open_checkpoint(source) as opened:
        quantize_checkpoint(opened, target, wanted)
    result = open_checkpoint(target)
    assert isinstance(result, QuantizedCheckpoint)
    return result


@pytest.mark.parametrize("rows", [1, 16, 19, 48])
def test_weights_are_packed_as_documented(rows: int) -> None:
    """Of a strip of 16 rows, or what is left: four bytes of each row, then the next four of each."""
    rng = np.random.default_rng(1)
    levels = rng.integers(-128, 128, (rows, 64)).astype(np.int8)
    numbers = rng.integers(0, 16, (rows, 64)).astype(np.uint8)
    bytes8, bytes4 = pack(levels).ravel(), pack(numbers).ravel()
    scales = rng.standard_normal((rows, 3)).astype(np.float32)
    items = in_strips(scales).ravel()
    assert len(bytes8) == levels.size and len(bytes4) == numbers.size // 2
    for o in range(rows):
        first = o // 16 * 16
        height = min(16, rows - first)
        for i in range(64):
            assert bytes8.view(np.int8)[first * 64 + (i // 4 * height + o - first) * 4 + i % 4] == levels[o, i]
            byte = bytes4[first * 32 + (i // 8 * height + o - first) * 4 + i % 4]
            assert (byte >> 4 if i % 8 >= 4 else byte & 15) == numbers[o, i]
        for g in range(3):
            assert items[first * 3 + g * height + o - first] == scales[o, g]
    np.testing.assert_array_equal(unpack(pack(levels)), levels)
    np.testing.assert_array_equal(unpack(pack(numbers)), numbers)
    np.testing.assert_array_equal(in_rows(in_strips(scales)), scales)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [8, 4])
def test_each_weight_becomes_the_nearest_level_of_its_groups_scale(bits: int, group: int) -> None:
    weights = np.random.default_rng(2).standard_normal((40, 256)).astype(np.float32)
    matrix = quantize(weights, bits, group)
    assert matrix.scales is not None
    levels = np.arange(-127, 128) if bits == 8 else LEVELS.astype(int)
    scales = np.repeat(in_rows(matrix.scales).astype(np.float64), group, axis=1)
    found = dequantize(matrix)
    nearest = levels[np.abs(weights[..., None] - levels * scales[..., None]).argmin(axis=-1)] * scales
    unit = 1.0 if bits == 4 else 1e-3  # where two levels are as near, but for the rounding to whole places
    assert (np.abs(found - weights) <= np.abs(nearest - weights) + unit * np.abs(scales)).all()
    share = np.square(found - weights).sum() / np.square(weights).sum()
    assert share < (4.5e-5 if bits == 8 else 8.5e-3)  # of normal numbers; 16 equal distances have 9e-3 at group 64


def test_zeros_and_the_least_and_largest_numbers_survive() -> None:
    weights = np.zeros((4, 128), np.float32)
    weights[1] = 1e-38
    weights[2, 5] = 9e29
    weights[3] = np.linspace(-1e-20, 1e-20, 128)
    for bits in (8, 4):
        found = dequantize(quantize(weights, bits, 128))
        assert np.isfinite(found).all()
        assert np.abs(found[:2]).max() < 1e-27
        assert found[2, 5] == pytest.approx(9e29, rel=0.2)
        np.testing.assert_allclose(found[3], weights[3], atol=1.5e-21)


class TestTheFile:
    @pytest.mark.parametrize(("bits", "group"), [(8, 32), (8, 64), (4, 32), (4, 128)])
    def test_matrices_are_rounded_embedding_and_vectors_are_not(
        self, source: Path, tmp_path: Path, bits: int, group: int
    ) -> None:
        with made(source, tmp_path / "q", bits, group=group) as result, open_checkpoint(source) as wide:
            assert list(result.shapes()) == list(expected_shapes(CONFIG))  # no training state
            fits = group == 32
            assert (FC2 in result.choices) == fits
            assert set(result.choices) == {
                name
                for name, shape in expected_shapes(CONFIG).items()
                if len(shape) == 2 and name != EMBEDDING and ("fc2" not in name or fits)
            }
            assert result.infos[EMBEDDING].dtype == BFLOAT16
            for name, info in result.infos.items():
                found, original = to_float32(result[name]), to_float32(wide[name])
                if len(info.shape) == 1:
                    np.testing.assert_array_equal(found, original)
                elif name not in result.choices:
                    np.testing.assert_array_equal(found, original.astype(BFLOAT16).astype(np.float32))
                else:
                    np.testing.assert_array_equal(found, dequantize(quantize(original, bits, group)))
                pieces = b"".join(bytes(piece) for piece in result.pieces(name))
                assert pieces == result[name].tobytes()

    def test_it_is_read_by_the_safetensors_package_and_begins_at_cache_lines(
        self, source: Path, tmp_path: Path
    ) -> None:
        with made(source, tmp_path / "q", 4, embedding_bits=8) as result:
            arrays = load_file(tmp_path / "q" / "model.safetensors")
            np.testing.assert_array_equal(arrays[Q_PROJ], result.matrix(Q_PROJ).array)
            assert arrays[EMBEDDING].dtype == np.int8
            assert all(result.matrix(name).array.ctypes.data % 64 == 0 for name in result.choices)

    def test_matrices_are_the_files_own_pages_and_stay_when_it_is_closed(self, source: Path, tmp_path: Path) -> None:
        with made(source, tmp_path / "q", 4) as result:
            matrix, expected = result.matrix(Q_PROJ), result[Q_PROJ]
            assert not matrix.array.flags.owndata and not matrix.array.flags.writeable
        np.testing.assert_array_equal(dequantize(matrix), expected)

    def test_shards_keep_joined_what_lies_in_two_of_them(self, source: Path, tmp_path: Path) -> None:
        with open_checkpoint(source) as opened:
            quantize_checkpoint(opened, tmp_path / "shards", Wanted(4, 16), shard_size=9000)
        with open_checkpoint(tmp_path / "shards") as shards, made(source, tmp_path / "q", 4) as whole:
            assert isinstance(shards, QuantizedCheckpoint)
            assert shards.choices == whole.choices
            for name in whole:
                np.testing.assert_array_equal(shards[name], whole[name])
            assert not shards.matrix(Q_PROJ).array.flags.owndata

    def test_names_to_keep_stay_bfloat16_and_a_name_of_none_is_an_error(self, source: Path, tmp_path: Path) -> None:
        with made(source, tmp_path / "q", 4, keep=("*layers.0.*", FC2)) as result:
            assert not [name for name in result.choices if ".layers.0." in name]
            assert result.infos[Q_PROJ].dtype == BFLOAT16
        with pytest.raises(InputError, match=r"no weight is named like 'q_proj'"):
            made(source, tmp_path / "none", 4, keep=("q_proj",))
        assert not (tmp_path / "none").exists()

    def test_what_cannot_be_wanted_is_refused(self) -> None:
        for wanted in ((5, 16, 64), (4, 4, 64), (8, 8, 48)):
            with pytest.raises(InputError):
                Wanted(*wanted)

    def test_a_weight_that_is_not_finite_is_named_and_nothing_is_left(self, source: Path, tmp_path: Path) -> None:
        with open_checkpoint(source) as opened:
            arrays = dict(opened)
        arrays[Q_PROJ] = np.where(np.arange(128) == 7, np.nan, arrays[Q_PROJ])
        write_checkpoint(tmp_path / "nan.ckpt", arrays)
        with pytest.raises(InputError, match=f"'{Q_PROJ}' holds numbers that are nan, infinite"):
            made(tmp_path / "nan.ckpt", tmp_path / "q", 4)
        assert not (tmp_path / "q").exists()

    def test_what_is_in_it_and_whether_it_is_sound(self, source: Path, tmp_path: Path) -> None:
        with made(source, tmp_path / "q.safetensors", 4) as result:
            assert list(problems(result, None)) == []
            assert all(map(result.has_checksum, result))
            assert set(bytes_by_dtype(result)) == {"int4/64", "bfloat16", "float32"}
            assert bytes_by_dtype(result)["int4/64"] == sum(
                np.prod(result.infos[name].shape) * (4 + 16 / 64) / 8 for name in result.choices
            )
        data = bytearray((tmp_path / "q.safetensors").read_bytes())
        data[-1] ^= 4
        (tmp_path / "q.safetensors").write_bytes(data)
        with open_checkpoint(tmp_path / "q.safetensors") as flipped:
            assert any("does not match its checksum" in str(problem.what) for problem in problems(flipped, None))


class TestDamage:
    """Files that are not what they say: one InputError when they are opened or read, whatever was changed."""

    @pytest.fixture
    def whole(self, source: Path, tmp_path: Path) -> bytes:
        made(source, tmp_path / "q.safetensors", 4).close()
        return (tmp_path / "q.safetensors").read_bytes()

    def reading(self, path: Path) -> None:
        with open_checkpoint(path) as result:
            if isinstance(result, QuantizedCheckpoint):
                for name in result.choices:
                    matrix = result.matrix(name)
                    assert dequantize(matrix).shape == matrix.shape == result.infos[name].shape
            for name in result:
                assert result[name].shape == result.infos[name].shape

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda card, header: card["tensors"][Q_PROJ].update(group=48), "cannot be read: Input should be 32"),
            (lambda card, header: card["tensors"][Q_PROJ].update(bits=3), "cannot be read: Input should be 8 or 4"),
            (lambda card, header: card["tensors"][Q_PROJ].update(bits=8), "which is not int8/64"),
            (lambda card, header: card["tensors"][Q_PROJ].update(group=32), "which is not int4/32"),
            (lambda card, header: card.update(version=3), "cannot be read: Input should be 2"),
            (lambda card, header: card.update(version=1), r"by an older spark13b[^\0]*quantise the original again"),
            (lambda card, header: card["tensors"].update(other={"bits": 4, "group": 64}), "'other' or its scales"),
            (lambda card, header: header.pop(Q_PROJ + ".scales"), "its scales are missing"),
            (lambda card, header: header[Q_PROJ].update(shape=[64, 128]), r"which is not int4/64"),
            (lambda card, header: header[Q_PROJ].update(shape=[8192]), r"of shape \[8192\] is not int4/64"),
            (lambda card, header: header[Q_PROJ].update(shape=[512, 16]), r"of shape \[512, 16\] is not int4/64"),
            (lambda card, header: header[Q_PROJ].update(dtype="I8"), "is int8"),
        ],
    )
    def test_what_the_file_says_must_agree(self, whole: bytes, tmp_path: Path, change: object, message: str) -> None:
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        card = json.loads(header["__metadata__"]["quantized"])
        change(card, header)  # type: ignore[operator]
        header["__metadata__"]["quantized"] = json.dumps(card)
        text = json.dumps(header).encode()
        (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
        with pytest.raises(InputError, match=message):
            open_checkpoint(tmp_path / "x.safetensors")

    def test_hundreds_of_changed_headers_and_bodies_are_read_or_refused_in_one_sentence(
        self, whole: bytes, tmp_path: Path
    ) -> None:
        rng = random.Random(8)
        length = int.from_bytes(whole[:8], "little")
        path = tmp_path / "x.safetensors"
        refused = 0
        for turn in range(400):
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 4)):
                place = rng.randrange(8 + length if turn % 4 else len(data))
                data[place] = rng.choice(b'0123456789-,:{}[]"eE ') if rng.random() < 0.7 else rng.randrange(256)
            if turn % 10 == 0:
                data = data[: rng.randrange(len(data))]
            path.write_bytes(data)
            try:
                self.reading(path)
            except SparkError as error:
                refused += 1
                assert error.where == str(path)
        assert refused > 200
