"""A model's way from its files into memory, to answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from infer.small_run import write_small_run
from spark13b.ckpt import open_checkpoint, write_checkpoint
from spark13b.ckpt.adapters import AdapterCard, open_adapters, write_adapters
from spark13b.ckpt.merging import merged
from spark13b.config.sections import LoraConfig
from spark13b.errors import InputError
from spark13b.infer.native_model import NativeModel
from spark13b.infer.prompts import Prompt
from spark13b.infer.session import Session, find_model
from spark13b.model.names import adapter_shapes, expected_shapes
from spark13b.native.library import Found, Library
from spark13b.run_folder import weights_of

LORA = LoraConfig(rank=2, alpha=16, targets="q_proj|fc2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_run(tmp_path_factory.mktemp("loading") / "run", model__num_layers=1)


def load(run: Path, *assignments: str, adapter: Path | None = None, fold: bool = False) -> Session:
    return Session(find_model(run, None, None, {}, assignments, adapter), fold=fold)


@pytest.mark.parametrize("format", ["ckpt", "safetensors"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_of_any_format_become_parameters_of_the_compute_type(
    format: str, dtype: type, run: Path, tmp_path: Path
) -> None:
    with open_checkpoint(weights_of(run)) as source:
        arrays = {name: source[name].astype(dtype) for name in source}
    path = tmp_path / f"weights.{format}"
    write_checkpoint(path, arrays, format)  # type: ignore[arg-type]
    found = find_model(path, str(run / "preset.yaml"), run / "tokenizer", {}, ["model.compute_type=float16"])
    for name, parameter in Session(found).model.weights().items():
        own = np.float32 if "norm" in name or "embedding" in name else np.float16
        assert parameter.asnumpy().dtype == own
        np.testing.assert_array_equal(parameter.asnumpy(), arrays[name].astype(own), err_msg=name)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_where_the_native_library_computes_answers_come_without_mindspore(
    kind: str, run: Path, native_library: Library
) -> None:
    """The library is of this source in the user's cache, too."""
    program = f"""
import sys
from pathlib import Path
from spark13b.infer import loading
from spark13b.native.library import Found, Library
loading.find_library = lambda: Found(Library(Path({str(native_library.path)!r})), "")
from spark13b.errors import InputError
from spark13b.infer.prompts import Prompt
from spark13b.infer.session import Session, find_model
session = Session(find_model(Path({str(run)!r}), None, None, {{}}, ["model.compute_type={kind}"]))
print(session.answer("你好").new_tokens)
assert "mindspore" not in sys.modules
print(session.choices())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    tokens, choices = result.stdout.splitlines()
    assert int(tokens) > 0
    assert choices.startswith("answers by the native library (")


def test_adapters_that_are_added_at_load_give_the_weights_of_a_merged_checkpoint(run: Path, tmp_path: Path) -> None:
    config = find_model(run, None, None, {}, ()).preset.model
    rng = np.random.default_rng(1)
    arrays = {
        name: rng.normal(size=shape).astype(np.float32) * 0.1 for name, shape in adapter_shapes(config, LORA).items()
    }
    adapter = tmp_path / "adapters.safetensors"
    write_adapters(adapter, arrays, AdapterCard(lora=LORA))
    folded, beside, bare = load(run, adapter=adapter, fold=True), load(run, adapter=adapter), load(run)
    with merged(open_checkpoint(weights_of(run)), open_adapters(adapter)) as expected:
        for name, array in folded.model.weights().items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
    said = [session.answer("你好").predict for session in (folded, beside, bare)]
    assert said[0] == said[1] != said[2]


@pytest.fixture(scope="module")
def large_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """167 MB of float32."""
    return write_small_run(
        tmp_path_factory.mktemp("large") / "run",
        model__num_layers=2,
        model__hidden_size=1024,
        model__ffn_hidden_size=8192,
        model__num_heads=8,
    )


@pytest.mark.parametrize(
    ("native", "kind", "most"), [(False, "float32", 4.4), (True, "float32", 0.2), (True, "bfloat16", 2.2)]
)
def test_loading_holds_no_weight_twice_and_none_where_it_can_be_mapped(
    native: bool, kind: str, most: float, run: Path, large_run: Path, native_library: Library
) -> None:
    """Resident memory at its highest, over that with a small model: bytes a weight."""
    found = f'Library(Path({str(native_library.path)!r})), ""' if native else 'None, "it is left out"'
    program = f"""
from pathlib import Path
from spark13b.infer import loading
from spark13b.infer.loading import load_model
from spark13b.native.library import Found, Library
loading.find_library = lambda: Found({found})
from spark13b.errors import InputError
from spark13b.infer.session import find_model

def status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

options = ["model.compute_type={kind}"]
load_model(find_model(Path({str(run)!r}), None, None, {{}}, options))  # what MindSpore itself takes at first
found = find_model(Path({str(large_run)!r}), None, None, {{}}, options)
open("/proc/self/clear_refs", "w").write("5")  # the highest mark begins here
before = status("VmRSS")
load_model(found)
print(status("VmHWM") - before)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    config = find_model(large_run, None, None, {}, ()).preset.model
    weights = sum(int(np.prod(shape)) for shape in expected_shapes(config).values())
    assert weights > 40e6
    assert int(result.stdout.splitlines()[-1]) * 1024 < most * weights


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("format", ["ckpt", "safetensors", "torch"])
def test_weights_of_16_bits_stay_so_and_answer_as_in_float32(
    format: str, dtype: type, run: Path, tmp_path: Path, native_library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Native answers in float32, whatever holds the weights."""
    monkeypatch.setattr("spark13b.infer.loading.find_library", lambda: Found(native_library, ""))
    with open_checkpoint(weights_of(run)) as source:
        narrow = {name: source[name].astype(dtype) for name in source}
    said = []
    for name, arrays in (("narrow", narrow), ("wide", {name: one.astype(np.float32) for name, one in narrow.items()})):
        path = tmp_path / f"{name}.{'bin' if format == 'torch' else format}"
        write_checkpoint(path, arrays, format)  # type: ignore[arg-type]
        session = Session(find_model(path, str(run / "preset.yaml"), run / "tokenizer", {}, ()))
        assert isinstance(session.model, NativeModel)
        for key, one in session.model.weights().items():
            assert isinstance(one, np.ndarray)
            assert one.dtype == (dtype if name == "narrow" and one.ndim == 2 else np.float32)
            np.testing.assert_array_equal(one, arrays[key])
        said.append(session.answer("你好"))
    assert said[0] == said[1]


def test_bfloat16_on_a_cpu_without_the_native_library_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark13b.infer.loading.find_library", lambda: Found(None, "it is not built"))
    with pytest.raises(InputError, match="MindSpore has no bfloat16 matrix products on a CPU"):
        load(run, "model.compute_type=bfloat16")


def test_tokens_that_the_tokenizer_does_not_know_are_never_chosen(tmp_path: Path) -> None:
    """A model may have more, to round their number up."""
    found = find_model(
        write_small_run(tmp_path / "run", model__num_layers=1, model__vocab_size=64000), None, None, {}, ()
    )
    session = Session(found, seats=2)
    for number, piece in session.run(session.requests([Prompt("你好"), Prompt("7 plus 5?")])):
        assert number in (0, 1)
        assert all(token.id < found.tokenizer.vocab_size for token in piece.tokens)
