"""The library's own promises: right on every set of instructions, the same bits however a step is divided."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.numpy_model import NumpyModel, random_weights
from spark13b.config.model import SparkConfig
from spark13b.model.names import expected_shapes
from spark13b.model.rope_table import rope_table
from spark13b.native import library as library_module
from spark13b.native.build import BuildError, build, library_name
from spark13b.native.library import Library, Weights, addresses_of, find_library, thread_count
from spark13b.native.matrix import BFLOAT16, Matrix
from spark13b.native.packing import dequantize, quantize


def as_stored(weights: np.ndarray, stored: str) -> Matrix:
    """Weights in the number format `stored`: float32, bfloat16, or int8 or int4 with the group's size after a dash."""
    name, _, group = stored.partition("-")
    if group:
        return quantize(np.ascontiguousarray(weights, np.float32), int(name.removeprefix("int")), int(group))
    array = np.ascontiguousarray(weights, np.float32)
    return Matrix(array if name == "float32" else array.astype(BFLOAT16).view(np.uint16))


def widened(matrix: Matrix) -> np.ndarray:
    """The same as float64."""
    if matrix.group:
        return dequantize(matrix).astype(np.float64)
    bits = matrix.array.dtype == np.uint16
    return (matrix.array.view(BFLOAT16) if bits else matrix.array).astype(np.float64)


class Texts:
    """A model of the library alone, and rings of `count` texts."""

    def __init__(
        self,
        library: Library,
        count: int,
        slots: int | None = None,
        stored: str = "float32",
        halves: bool = False,
        **shape: int,
    ) -> None:
        sizes = {"num_layers": 2, "hidden_size": 96, "num_heads": 3, "ffn_hidden_size": 74, "vocab_size": 37}
        self.config = SparkConfig(**({**sizes, "seq_length": 40, "sparse_local_size": 8} | shape))
        self.slots = slots or self.config.cache_slots
        arrays = random_weights(self.config, seed=count)
        names = list(expected_shapes(self.config))
        matrices = {name: as_stored(arrays[name], stored) for name in names if arrays[name].ndim == 2}
        arrays |= {name: widened(matrix) for name, matrix in matrices.items()}
        self.twin = NumpyModel(self.config, arrays)
        cos, sin = (table.astype(np.float32) for table in rope_table(self.config))
        ordered = {name: matrices.get(name, np.ascontiguousarray(arrays[name], np.float32)) for name in names}
        self.parameters = list(ordered.values())
        self.weights = Weights(self.parameters, cos, sin, self.config.num_heads, self.config.layernorm_epsilon)
        ring = (count, self.config.num_layers, 2, self.config.num_heads * self.slots, self.config.head_size)
        self.rings = np.zeros(ring, BFLOAT16 if halves else np.float32)
        self.halves = halves
        flat = self.rings.reshape(-1, *self.rings.shape[3:])
        self.addresses = addresses_of(list(flat)).reshape(count, -1, 2)
        self.library = library

    def step(self, texts: list[int], ids: list[int], positions: list[int], threads: int = 1, **more: int) -> np.ndarray:
        """One token of some of the texts."""
        numbers = (np.array(ids, np.int32), np.array(positions, np.int32))
        return self.library.step(
            self.weights, self.slots, *numbers, self.addresses[texts], threads=threads, halves=self.halves, **more
        )


def grown(texts: Texts, ids: np.ndarray, **more: int) -> np.ndarray:
    """All texts (N, T) from their first token on -> the logits (N, T, V)."""
    texts.rings[:] = 0
    rows = list(range(len(ids)))
    steps = [texts.step(rows, ids[:, at].tolist(), [at] * len(ids), **more) for at in range(ids.shape[1])]
    return np.stack(steps, axis=1)


def random_ids(count: int, length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, 37, (count, length))


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"sparse_local_size": 1},
        {"sparse_local_size": 100},  # the window is larger than the context
        {"hidden_size": 64, "num_heads": 1},
        {"hidden_size": 72, "num_heads": 2},  # heads of 36: no multiple of a vector
        {"hidden_size": 256, "num_heads": 2, "ffn_hidden_size": 6},
        {"hidden_size": 10, "num_heads": 1, "vocab_size": 41, "num_layers": 1},  # less than a vector
    ],
    ids=str,
)
def test_logits_are_those_of_the_formulas_for_odd_shapes_on_every_set_of_instructions(
    native_library: Library, shape: dict[str, int]
) -> None:
    texts = Texts(native_library, 2, **shape)
    ids = random_ids(2, 23)
    expected = texts.twin.logits(ids)
    for level in range(native_library.level + 1):
        np.testing.assert_allclose(grown(texts, ids, level=level), expected, atol=1e-4)


TYPES = ("bfloat16", *(f"int{bits}-{group}" for bits in (8, 4) for group in (32, 64, 128)))
WHOLE = {"hidden_size": 256, "num_heads": 4, "ffn_hidden_size": 768}  # widths that every type can have


@pytest.mark.parametrize("stored", TYPES)
def test_weights_of_every_type_are_widened_exactly_and_all_sums_are_float32(
    native_library: Library, stored: str
) -> None:
    """The independent model computes with what the weights stand for, in float64."""
    for shape in [WHOLE] if "-" in stored else [{}, {"hidden_size": 72, "num_heads": 2}]:
        texts = Texts(native_library, 9, stored=stored, **shape)
        ids = random_ids(9, 12)
        expected = texts.twin.logits(ids)
        for level in range(native_library.level + 1):
            np.testing.assert_allclose(grown(texts, ids, level=level), expected, atol=1e-4)


@pytest.mark.parametrize("stored", ["float32", *TYPES])
def test_a_text_has_the_same_bits_alone_in_company_and_with_two_threads_whatever_the_type(
    native_library: Library, stored: str
) -> None:
    texts = Texts(native_library, 9, stored=stored, vocab_size=301, **WHOLE)
    ids = random_ids(9, 3)
    for level in range(native_library.level + 1):
        together = grown(texts, ids, level=level, threads=2)
        for count in range(1, 9):
            np.testing.assert_array_equal(grown(texts, ids[:count], level=level), together[:count])


@pytest.mark.parametrize("hidden", [96, 192])  # one piece of work for a product, and several
def test_a_text_has_the_same_bits_alone_among_eleven_and_with_any_number_of_threads(
    native_library: Library, hidden: int
) -> None:
    texts = Texts(native_library, 11, hidden_size=hidden, vocab_size=401, ffn_hidden_size=1000)
    ids = random_ids(11, 13)
    for level in range(native_library.level + 1):
        together = grown(texts, ids, level=level)
        for threads in (2, 3):
            np.testing.assert_array_equal(grown(texts, ids, level=level, threads=threads), together)
        texts.rings[:] = 0
        for text, count in ((0, 1), (4, 3), (10, 7)):
            others = [other for other in range(11) if other != text][: count - 1]
            for at in range(13):
                row = [text, *others]
                found = texts.step(row, ids[row, at].tolist(), [at] * count, level=level)
                np.testing.assert_array_equal(found[0], together[text, at])


def test_texts_of_different_lengths_share_a_step(native_library: Library) -> None:
    texts = Texts(native_library, 3)
    ids = random_ids(3, 30)
    expected = texts.twin.logits(ids)
    for at in range(-20, 30):
        rows = [row for row, start in enumerate((0, 20, 11)) if 0 <= at + start < 30]
        places = [at + (0, 20, 11)[row] for row in rows]
        if rows:
            found = texts.step(rows, [int(ids[row, place]) for row, place in zip(rows, places, strict=True)], places)
            for row, place, one in zip(rows, places, found, strict=True):
                np.testing.assert_allclose(one, expected[row, place], atol=1e-4)


def test_numbers_that_overflow_stay_overflowed_and_harm_no_other_text(native_library: Library) -> None:
    texts = Texts(native_library, 2)
    ids = random_ids(2, 3)
    expected = grown(texts, ids)[1]
    texts.rings[0] = np.nan
    texts.rings[1] = 0
    found = np.stack([texts.step([0, 1], ids[:, at].tolist(), [7, at]) for at in range(3)], axis=1)
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1], expected)


class TestRefusedBeforeTheLibraryIsCalled:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda texts: texts.step([0], [37], [0]), "ids go from 37 to 37, the vocabulary is 37"),
            (lambda texts: texts.step([0], [-1], [0]), "ids go from -1"),
            (lambda texts: texts.step([0], [1], [40]), "positions go from 40 to 40, of 40"),
            (lambda texts: texts.step([0], [1], [-1]), "positions go from -1"),
            (lambda texts: texts.step([0], [1], [0], threads=0), "0 threads"),
            (lambda texts: texts.step([0], [1], [0], level=3), "level 3"),
            (lambda texts: texts.step([], [], []), "0 texts"),
            (lambda texts: texts.step([0, 0], [1, 1], [0, 0]), "the same for two texts"),
            (lambda texts: texts.step([0, 1], [1], [0]), r"rings must be uint64 \(1, 2, 2\)"),
            (lambda texts: texts.step([0], [1], [0, 0]), r"positions must be int32 \(1,\)"),
        ],
    )
    def test_numbers_out_of_range(self, native_library: Library, call: Callable[[Texts], object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            call(Texts(native_library, 2))

    def test_parameters_of_another_type_shape_or_layout(self, native_library: Library) -> None:
        texts = Texts(native_library, 1)
        good = [one.array if isinstance(one, Matrix) else one for one in texts.parameters]
        tables = (texts.weights.cos, texts.weights.sin)
        for number, wrong in (
            (3, good[3].astype(np.float64)),
            (3, good[3].T),
            (3, good[3].astype(BFLOAT16).T),
            (4, good[4][:-1]),
            (4, good[4].astype(BFLOAT16)),
            (0, np.asfortranarray(good[0])),
        ):
            with pytest.raises(ValueError, match=f"parameter {number} must be (float32|bfloat16)"):
                Weights([*good[:number], wrong, *good[number + 1 :]], *tables, 3, 1e-5)
        with pytest.raises(ValueError, match="38 parameters are not those of a model"):
            Weights(good[:-1], *tables, 3, 1e-5)
        with pytest.raises(ValueError, match="5 heads do not divide 96"):
            Weights(good, *tables, 5, 1e-5)


def test_a_matrix_of_whole_numbers_must_fit_its_scales(native_library: Library) -> None:
    texts = Texts(native_library, 1, stored="int4-64", **WHOLE)
    good, tables = texts.parameters, (texts.weights.cos, texts.weights.sin)
    matrix = good[3]
    assert isinstance(matrix, Matrix) and matrix.scales is not None
    for wrong in (
        Matrix(matrix.array, matrix.scales, 48),
        Matrix(matrix.array, matrix.scales, 32),
        Matrix(matrix.array, None, 64),
        Matrix(matrix.array, matrix.scales[:-1], 64),
        Matrix(matrix.array, matrix.scales.astype(np.float32), 64),
        Matrix(matrix.array[:, :-32], matrix.scales, 64),
        Matrix(matrix.array[:-1], matrix.scales[:-1], 64),
        Matrix(matrix.array[:, ::2].copy(), matrix.scales[:, ::2].copy(), 64),
        Matrix(np.asfortranarray(matrix.array), matrix.scales, 64),
        Matrix(matrix.array.view(np.int8), matrix.scales, 64),
        Matrix(matrix.array, matrix.scales),
    ):
        with pytest.raises(ValueError, match="parameter 3 "):
            Weights([*good[:2], good[2], wrong, *good[4:]], *tables, 4, 1e-5)


class TestBuilding:
    def test_without_a_compiler_there_is_no_library_and_a_reason(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        with pytest.raises(BuildError, match=r"there is no C\+\+ compiler"):
            build(tmp_path / "lib")
        assert not (tmp_path / "lib").exists()

    def test_a_compiler_that_fails_leaves_nothing_and_is_quoted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compiler = tmp_path / "broken"
        compiler.write_text("#!/bin/sh\necho 'no such flag' >&2\nexit 3\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        with pytest.raises(BuildError, match="ended with exit code 3:\nno such flag"):
            build(tmp_path / "lib")
        assert list((tmp_path / "lib").iterdir()) == []

    def test_the_library_is_found_in_the_users_cache_and_switched_off_by_the_environment(
        self, native_library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(library_module, "source_folder", lambda: tmp_path)  # nothing was installed beside it
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.delenv("SPARK13B_NATIVE", raising=False)
        assert find_library().reason == "it is not built"
        place = tmp_path / "spark13b" / "native"
        place.mkdir(parents=True)
        (place / library_name()).symlink_to(native_library.path)
        found = find_library().library
        assert found is not None
        assert found.path == place / library_name()
        monkeypatch.setenv("SPARK13B_NATIVE", "0")
        assert find_library().reason == "SPARK13B_NATIVE=0 switches it off"

    def test_a_file_that_is_no_library_is_not_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(library_module, "source_folder", lambda: tmp_path)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
        monkeypatch.delenv("SPARK13B_NATIVE", raising=False)
        monkeypatch.setattr(library_module, "library_name", lambda: "cut.so")
        (tmp_path / "cut.so").write_bytes(b"\x7fELF")
        found = find_library()
        assert found.library is None
        assert found.reason.startswith("it does not load: ")


def test_threads_are_those_of_the_environment_else_the_cores_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert thread_count() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert thread_count() == len(os.sched_getaffinity(0))
