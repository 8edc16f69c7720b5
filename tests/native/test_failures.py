"""An operator that fails in a real graph of MindSpore: one error that says what, where and what to do, no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from native.test_operators import Batch, call
from spark13b.native.failures import operator_error
from spark13b.native.library import Library

PROGRAM = """
import shutil, sys
from pathlib import Path
import numpy as np
from spark13b.errors import JobError
from spark13b.model import SparkConfig, SparkForCausalLM, native_choice
from spark13b.native.library import Found, Library
moved = Path(sys.argv[2])
shutil.copy(sys.argv[1], moved)
library = Library(moved)
native_choice.find_library = lambda: Found(library, "")
shape = dict(num_layers=1, hidden_size=8, num_heads=1, ffn_hidden_size=8, vocab_size=16, seq_length=16)
model = SparkForCausalLM(SparkConfig(sparse_local_size=4, **shape))
assert model.library is library
ids = np.array([[1, 2, 3]])

def told() -> None:
    try:
        model.loss(ids)
    except JobError as error:
        print(error, end="\\n\\n")

moved.unlink()
told()
shutil.copy(sys.argv[1], moved)
model._checked = lambda ids, extra: ids + 14  # what is checked before the library is called
told()
"""


def test_what_mindspore_raises_for_an_operator_is_told_as_a_job_that_failed(
    native_library: Library, tmp_path: Path
) -> None:
    moved = tmp_path / "moved.so"
    command = [sys.executable, "-c", PROGRAM, str(native_library.path), str(moved)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    gone, refused, end = result.stdout.split("\n\n")
    assert gone == f"the native library is gone\n  at: {moved}\n  fix: run 'spark13b native build'"
    assert refused == (
        "the native library refused its arguments: one is out of range\n  at: the loss of a batch\n"
        "  fix: with SPARK13B_NATIVE=0 MindSpore computes it; please report this"
    )
    assert end == ""


@pytest.mark.parametrize("name", ["spark_loss", "spark_loss_and_gradients"])
def test_memory_that_ends_is_a_status_and_nothing_is_touched(native_library: Library, name: str) -> None:
    batch = Batch()
    given, *tensors = batch.inputs(native_library.best)
    wide = 3 << 40  # rows of fc0: more numbers a token than any machine has room for
    place = 6 + next(at for at, weight in enumerate(batch.weights) if weight.endswith("fc0.weight"))
    tensors[place] = np.lib.stride_tricks.as_strided(tensors[place], (wide, tensors[place].shape[1]), (0, 0))
    outputs = [np.full(2, 7, np.float32)]
    if name.endswith("gradients"):
        outputs += [np.full_like(one, 7) for one in batch.weights.values()]
    assert call(native_library, name, [given, *tensors], outputs) == 2
    assert all((one == 7).all() for one in outputs)


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (2, "out of memory in the native library"),
        (3, "a product of the native library failed: for want of memory, or in oneDNN"),
        (9, "the native library failed with status 9"),
    ],
)
def test_each_status_has_its_words_and_a_way_out(status: int, what: str) -> None:
    error = operator_error(
        f"Return value from CPU AOT kernel(/a/b.so)'s function(spark_update) is {status}. Any return"
    )
    assert error is not None
    assert (error.what, error.where, error.exit_code) == (what, "the update of a training step", 1)
    assert error.fix


def test_other_errors_of_mindspore_stay_what_they_are() -> None:
    assert operator_error("Device memory isn't enough and alloc failed") is None
