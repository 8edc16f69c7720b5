"""What MindSpore tells of an operator of the native library that failed, as an error of ours.

An operator can only end with a number other than 0 (operators.cpp), which MindSpore makes a RuntimeError of, or not be
found when its graph is first called. Nothing can be computed in the process after the former.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from spark13b.errors import JobError

_ENDED = re.compile(r"function\((spark_\w+)\) is (-?\d+)")  # MindSpore 2.9
_GONE = re.compile(r"couldn't find the AOT binary file: (.+)")
_WORK = {
    "spark_loss": "the loss of a batch",
    "spark_loss_and_gradients": "loss and gradients of a training step",
    "spark_update": "the update of a training step",
    "spark_attention": "attention",
    "spark_attention_gradient": "the gradient of attention",
}
_MEMORY = "use fewer rows at once (train.batch_size; eval: --batch-size), train.recompute=true, or end other programs"
_MINDSPORE = "with SPARK13B_NATIVE=0 MindSpore computes it"
_ENDS = {
    1: ("the native library refused its arguments: one is out of range", f"{_MINDSPORE}; please report this"),
    2: ("out of memory in the native library", _MEMORY),
    3: ("a product of the native library failed: for want of memory, or in oneDNN", f"{_MEMORY}; or: {_MINDSPORE}"),
}


@contextmanager
def operator_failures() -> Iterator[None]:
    """Raise JobError for what MindSpore raises inside when an operator of the native library fails."""
    try:
        yield
    except RuntimeError as error:
        found = operator_error(str(error))
        if found is None:
            raise
        raise found from error


def operator_error(message: str) -> JobError | None:
    """The error that MindSpore's message stands for, or None where it tells of something else."""
    if ended := _ENDED.search(message):
        name, status = ended[1], int(ended[2])
        what, fix = _ENDS.get(status, (f"the native library failed with status {status}", _MINDSPORE))
        return JobError(what, where=_WORK.get(name, name), fix=fix)
    if gone := _GONE.search(message):
        return JobError("the native library is gone", where=gone[1].strip(), fix="run 'spark13b native build'")
    return None
