"""The library's own promises: right on every set of instructions, the same bits however a step is divided."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.numpy_model import NumpyModel, random_weights
from spark13b.config.model import SparkConfig
from spark13b.errors import InputError
from spark13b.model.names import expected_shapes
from spark13b.model.rope_table import rope_table
from spark13b.native import library as library_module
from spark13b.native.arrays import addresses_of
from spark13b.native.build import BuildError, build, find_compiler, library_name
from spark13b.native.decoding import decode_step
from spark13b.native.library import Library, find_library, thread_count
from spark13b.native.matrix import BFLOAT16, Matrix
from spark13b.native.packing import LEVELS, dequantize, quantize
from spark13b.native.products import decode_product
from spark13b.native.weights import Weights


def as_stored(weights: np.ndarray, stored: str) -> Matrix:
    """Weights in the number format `stored`: a float's, or int8 or int4 with the group's size after a dash."""
    name, _, group = stored.partition("-")
    if group:
        return quantize(np.ascontiguousarray(weights, np.float32), int(name.removeprefix("int")), int(group))
    array = np.ascontiguousarray(weights, np.float32)
    return Matrix(array.astype(BFLOAT16).view(np.uint16) if name == "bfloat16" else array.astype(name))


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
        self.tables = cos, sin
        self.use(list(ordered.values()))
        ring = (count, self.config.num_layers, 2, self.config.num_heads * self.slots, self.config.head_size)
        self.rings = np.zeros(ring, BFLOAT16 if halves else np.float32)
        self.halves = halves
        flat = self.rings.reshape(-1, *self.rings.shape[3:])
        self.addresses = addresses_of(list(flat)).reshape(count, -1, 2)
        self.library = library

    def use(self, parameters: list[np.ndarray | Matrix]) -> None:
        """Compute with other parameters from here on."""
        self.parameters = parameters
        self.weights = Weights(parameters, *self.tables, self.config.num_heads, self.config.layernorm_epsilon)

    def hold_float32(self) -> None:
        """The same numbers, each matrix as float32."""
        self.use([widened(one).astype(np.float32) if isinstance(one, Matrix) else one for one in self.parameters])

    def step(self, texts: list[int], ids: list[int], positions: list[int], threads: int = 1, **more: int) -> np.ndarray:
        """One token of some of the texts."""
        numbers = (np.array(ids, np.int32), np.array(positions, np.int32))
        return decode_step(
            self.library,
            self.weights,
            self.slots,
            *numbers,
            self.addresses[texts],
            threads=threads,
            halves=self.halves,
            **more,
        )


def grown(texts: Texts, ids: np.ndarray, **more: int) -> np.ndarray:
    """All texts (N, T) from their first token on -> the logits (N, T, V)."""
    texts.rings[:] = 0
    rows = list(range(len(ids)))
    steps = [texts.step(rows, ids[:, at].tolist(), [at] * len(ids), **more) for at in range(ids.shape[1])]
    return np.stack(steps, axis=1)


def sets_of_instructions(library: Library) -> list[dict[str, int]]:
    """Arguments of a step that choose each set of instructions, with and without those for whole numbers."""
    levels = range(library.level + 1)
    return [
        {"level": level, "whole_numbers": whole_numbers}
        for whole_numbers in (False, True)
        for level in levels
        if not whole_numbers or library.has_whole_numbers(level)
    ]


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
    for level in range(native_library.best + 1):
        np.testing.assert_allclose(grown(texts, ids, level=level), expected, atol=1e-4)


TYPES = ("bfloat16", "float16", *(f"int{bits}-{group}" for bits in (8, 4) for group in (32, 64, 128)))
WHOLE = {"hidden_size": 256, "num_heads": 4, "ffn_hidden_size": 768}  # widths that every type can have


@pytest.mark.parametrize("stored", TYPES)
def test_weights_of_every_type_are_widened_exactly_and_all_sums_are_float32(
    native_library: Library, stored: str
) -> None:
    """The independent model computes with what the weights stand for, in float64."""
    shapes: list[dict[str, int]] = [{}, {"hidden_size": 72, "num_heads": 2}]
    if "-" in stored:
        shapes = [WHOLE, {"ffn_hidden_size": 320}] if stored.endswith("-32") else [WHOLE]
    for shape in shapes:
        texts = Texts(native_library, 9, stored=stored, **shape)
        ids = random_ids(9, 12)
        expected = texts.twin.logits(ids)
        for instructions in sets_of_instructions(native_library):
            # whole numbers: inputs have 16 bits, and these random logits of up to 13 lose 1/2000 of it
            tolerance = 1e-2 if instructions["whole_numbers"] and "-" in stored else 1e-4
            np.testing.assert_allclose(grown(texts, ids, **instructions), expected, atol=tolerance)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_every_number_of_16_bits_is_widened_exactly(native_library: Library, stored: str) -> None:
    """One product by 1 of each, subnormal and infinite ones, too; what is no number stays none."""
    every = np.arange(1 << 16, dtype=np.uint16).view(BFLOAT16 if stored == "bfloat16" else np.float16)
    expected = every.astype(np.float32)
    for level in range(native_library.best + 1):
        for width in (1, 16):  # a part of a vector, and whole ones
            wide, out = np.zeros((len(every), width), every.dtype), np.empty((1, len(every)), np.float32)
            wide[:, 0] = every
            one = np.zeros((1, width), np.float32)
            one[0, 0] = 1.0
            decode_product(native_library, Matrix(wide), one, out, threads=1, level=level)
            np.testing.assert_array_equal(out[0], expected)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_weights_of_16_bits_have_the_bits_of_the_same_weights_in_float32(native_library: Library, stored: str) -> None:
    narrow, wide = (Texts(native_library, 9, stored=stored, vocab_size=301, **WHOLE) for _ in range(2))
    wide.hold_float32()
    ids = random_ids(9, 3)
    for level in range(native_library.best + 1):
        np.testing.assert_array_equal(grown(narrow, ids, level=level), grown(wide, ids, level=level))


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [8, 4])
def test_whole_numbers_lose_the_rounding_of_inputs_to_16_bits_and_nothing_else(
    native_library: Library, bits: int, group: int
) -> None:
    """From the bytes alone, by the formulas of weights.h and whole_numbers.h.

    Sums of a group are exact, those of groups float32's.
    """
    if not native_library.whole_numbers:
        pytest.skip("this processor has no VNNI")
    rng = np.random.default_rng(group)
    for outputs, inputs, texts in (
        (1, group, 1),
        (15, 3 * group, 2),
        (16, group, 3),
        (33, 2 * group, 4),
        (70, 5 * group, 9),
    ):
        width = inputs if bits == 8 else inputs // 2
        array = rng.integers(0, 256, (outputs, width), np.uint8)
        scales = rng.standard_normal((outputs, inputs // group)).astype(BFLOAT16)
        matrix = Matrix(array.view(np.int8) if bits == 8 else array, scales, group)
        x = (rng.standard_normal((texts, inputs)) * rng.choice([1e-6, 1, 1e4], (1, inputs))).astype(np.float32)
        bias, out = (rng.standard_normal(shape).astype(np.float32) for shape in (outputs, (texts, outputs)))
        before = out.copy()
        decode_product(native_library, matrix, x, out, threads=2, bias=bias, adds=True)
        wholes, units = rounded_inputs(x, group)
        levels, factors = read_strips(array.ravel(), scales.ravel(), outputs, inputs, group, bits)
        sums = np.einsum("tgi,ogi->tog", wholes, levels).astype(np.float32)
        terms = sums * (factors[None] * units[:, None]).astype(np.float64)
        bound = 2e-7 * (np.abs(terms).sum(axis=-1) + np.abs(bias) + np.abs(before)) * (inputs // group)
        assert (np.abs(out - (terms.sum(axis=-1) + bias + before)) <= bound).all()


def rounded_inputs(x: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, inputs) float32 -> whole numbers (N, groups, group) as int64, and their units (N, groups)."""
    groups = x.reshape(len(x), -1, group)
    largest = np.abs(groups).max(axis=2)
    return np.rint(groups * (np.float32(32512) / largest)[..., None]).astype(np.int64), largest / np.float32(32512)


def read_strips(
    data: np.ndarray, scales: np.ndarray, outputs: int, inputs: int, group: int, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bytes in strips, and scales -> levels (outputs, groups, group) int64, scales (outputs, groups) float32."""
    levels, factors = np.empty((outputs, inputs), np.int64), np.empty((outputs, inputs // group), np.float32)
    taken = 8 if bits == 4 else 4  # inputs of a row that lie together
    for o in range(outputs):
        first = o // 16 * 16
        height = min(16, outputs - first)
        factors[o] = scales[first * (inputs // group) :][o - first :: height][: inputs // group]
        for i in range(inputs):
            byte = int(data[first * inputs * bits // 8 + (i // taken * height + o - first) * 4 + i % 4])
            if bits == 8:
                levels[o, i] = byte - 256 * (byte > 127)
            else:
                levels[o, i] = LEVELS[byte >> 4 if i % 8 > 3 else byte & 15]
    return levels.reshape(outputs, -1, group), factors


def test_inputs_that_are_no_numbers_make_outputs_nan_and_zeros_stay_zeros(native_library: Library) -> None:
    matrix = as_stored(np.random.default_rng(0).standard_normal((20, 128)), "int4-64")
    x = np.zeros((5, 128), np.float32)
    x[1, 3], x[2, 100], x[3, 64], x[4, 7] = np.inf, np.nan, -np.inf, 1e-38
    for instructions in sets_of_instructions(native_library):
        out = np.empty((5, 20), np.float32)
        decode_product(native_library, matrix, x, out, threads=1, **instructions)  # type: ignore[arg-type]
        assert not np.isfinite(out[1:4]).any()
        np.testing.assert_array_equal(out[0], 0)
        np.testing.assert_allclose(out[4], 0, atol=1e-36)


@pytest.mark.parametrize("stored", ["float32", *TYPES])
def test_a_text_has_the_same_bits_alone_in_company_and_with_two_threads_whatever_the_type(
    native_library: Library, stored: str
) -> None:
    texts = Texts(native_library, 9, stored=stored, vocab_size=301, **WHOLE)
    ids = random_ids(9, 3)
    for instructions in sets_of_instructions(native_library):
        together = grown(texts, ids, **instructions, threads=2)
        for count in range(1, 9):
            np.testing.assert_array_equal(grown(texts, ids[:count], **instructions), together[:count])


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [8, 4])
def test_whole_numbers_have_the_same_bits_with_every_instruction_for_them_in_any_company(
    native_library: Library, bits: int, group: int
) -> None:
    if not native_library.whole_numbers:
        pytest.skip("this processor has no VNNI")
    rng = np.random.default_rng(bits)
    for outputs, groups in ((16, 1), (75, 5), (160, 4)):  # whole strips, and a last one of 11 rows
        matrix = as_stored(rng.standard_normal((outputs, groups * group)), f"int{bits}-{group}")
        x = rng.standard_normal((41, groups * group)).astype(np.float32)
        bias, before = (rng.standard_normal(shape).astype(np.float32) for shape in (outputs, (41, outputs)))
        alone = before.copy()
        for row in range(41):
            decode_product(
                native_library, matrix, x[row : row + 1], alone[row : row + 1], threads=1, bias=bias, adds=True
            )
        for level in filter(native_library.has_whole_numbers, range(native_library.best + 1)):
            for rows in (1, 2, 3, 4, 7, 8, 9, 12, 13, 16, 17, 19, 33, 41):
                out = before[:rows].copy()
                decode_product(native_library, matrix, x[:rows], out, threads=2, bias=bias, adds=True, level=level)
                np.testing.assert_array_equal(out, alone[:rows])


@pytest.mark.parametrize("hidden", [96, 192])  # one piece of work for a product, and several
def test_a_text_has_the_same_bits_alone_among_eleven_and_with_any_number_of_threads(
    native_library: Library, hidden: int
) -> None:
    texts = Texts(native_library, 11, hidden_size=hidden, vocab_size=401, ffn_hidden_size=1000)
    ids = random_ids(11, 13)
    for level in range(native_library.best + 1):
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
            (lambda texts: texts.step([0], [1], [0], level=5), "level 5"),
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
            (3, good[3].astype(np.float16).T),
            (4, good[4][:-1]),
            (4, good[4].astype(BFLOAT16)),
            (4, good[4].astype(np.float16)),
            (0, np.asfortranarray(good[0])),
        ):
            with pytest.raises(ValueError, match=f"parameter {number} must be (float32|bfloat16|float16)"):
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
        monkeypatch.setenv("SPARK13B_NATIVE", "baseline")
        limited = find_library().library
        assert limited is not None
        assert limited.level == 0
        assert limited.describe().startswith("baseline, compiled by")

    def test_a_word_that_is_no_set_of_instructions_is_refused_with_those_that_are(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SPARK13B_NATIVE", "fastest")
        message = "SPARK13B_NATIVE=fastest is neither 0 nor one of baseline, avx2, avx512, amx, amx-float32"
        with pytest.raises(InputError, match=message):
            find_library()

    def test_on_a_processor_that_lacks_what_is_asked_for_the_best_it_has_is_used_and_told(
        self, native_library: Library, tmp_path: Path
    ) -> None:
        compiler = find_compiler()
        if compiler is None:
            pytest.skip("there is no C++ compiler")
        source, poorer = tmp_path / "poorer.cpp", tmp_path / "poorer.so"
        own = 'extern "C" int spark_level() { return 1; }\nextern "C" int spark_whole_numbers(int) { return 0; }\n'
        source.write_text(own)  # found before the library's
        linked = ("-shared", "-fPIC", "-Wl,--no-as-needed", str(source), str(native_library.path))
        command = [*compiler, *linked, "-o", str(poorer)]
        subprocess.run(command, check=True)
        found = Library(poorer, library_module.LEVELS.index("AMX"))
        assert found.level == 1
        told = "AVX2 (AMX was asked for, and processor or compiler have it not), compiled by"
        assert found.describe().startswith(told)
        assert Library(poorer).describe().startswith("AVX2, compiled by")

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
