"""Run as `python -m spark13b.doctor.probe`: MindSpore, the devices that it sees, and a tiny call of attention.

One line of JSON on stdout for each step, behind a mark that tells it from what MindSpore prints. A crash loses only the
steps that were not reached.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark13b.config.model import SparkConfig

MARK = "spark13b-probe "
_HEADS = 2


def main() -> None:
    """Take the steps and tell each; an error ends them and is told, too."""
    step = "mindspore"
    try:
        _tell(step, **_import())
        step = "devices"
        facts = _devices()
        _tell(step, **facts)
        step = "attention"
        _tell(step, **_attention(facts["chip"]))
    except Exception as error:  # whatever MindSpore raises: the process that asked shows it
        lines = str(error).strip().splitlines()
        _tell("error", at=step, what=f"{type(error).__name__}: {lines[0] if lines else 'no message'}")


def _tell(step: str, **facts: Any) -> None:
    sys.stdout.write("\n" + MARK + json.dumps({"step": step, **facts}) + "\n")
    sys.stdout.flush()


def _import() -> dict[str, Any]:
    start = time.perf_counter()
    import mindspore

    return {
        "version": str(mindspore.__version__),
        "seconds": time.perf_counter() - start,
        "cann": _supported_cann(),
    }


def _supported_cann() -> list[str]:
    """The releases of CANN that this MindSpore accepts; empty when it does not say."""
    try:
        from mindspore.run_check._check_version import AscendEnvChecker

        return [str(version) for version in AscendEnvChecker("").version]
    except Exception:  # not a public name: it may go any day
        return []


def _devices() -> dict[str, Any]:
    from spark13b.model.device import device

    found = device()
    if found == "cpu":
        return {"device": found, "count": 0, "names": [], "chip": None}
    import mindspore

    from spark13b.model.attention.choose import ascend_chip

    count = int(mindspore.hal.device_count("Ascend"))
    names = [str(mindspore.hal.get_device_name(number, "Ascend")) for number in range(count)]
    return {"device": found, "count": count, "names": names, "chip": ascend_chip()}


def _attention(chip: str | None) -> dict[str, Any]:
    """A real call of the backend that long texts take here, and how far it is from NumPy's numbers."""
    import mindspore
    import numpy as np

    from spark13b.errors import InputError
    from spark13b.model.attention.attend import make_backend
    from spark13b.model.attention.choose import choose_backend
    from spark13b.model.device import device

    config = _config(chip)
    fused = "acctransformer" if chip == "910A" else "ascend"
    try:
        backend = choose_backend(config.model_copy(update={"attention_backend": fused}), device(), 1, 2).backend
        reason = "the fused attention of this device"
    except InputError as error:
        backend, reason = "blocked", error.what.partition(": ")[2]
    tokens = config.seq_length
    random = np.random.default_rng(0)
    q, k, v = (random.normal(size=(1, _HEADS, tokens, config.head_size)) for _ in range(3))
    start = time.perf_counter()
    kind = getattr(mindspore, config.compute_type)
    cell = make_backend(backend, config)
    mask = cell.mask(mindspore.Tensor(0, mindspore.int32), 1, _HEADS, tokens)
    out = cell(*(mindspore.Tensor(array.astype(np.float32)).astype(kind) for array in (q, k, v)), mask)
    result = out.astype(mindspore.float32).asnumpy()
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(config.head_size)
    distance = np.arange(tokens)[:, None] - np.arange(tokens)
    scores = np.where((distance >= 0) & (distance < config.sparse_local_size), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    return {
        "backend": backend,
        "reason": reason,
        "fused": backend == fused,
        "tokens": tokens,
        "difference": float(np.abs(result - expected).max()),
        "allowed": 1e-4 if config.compute_type == "float32" else 3e-2,
        "seconds": time.perf_counter() - start,
    }


def _config(chip: str | None) -> SparkConfig:
    """A shape that the kernels take. With a window of all tokens the 910A's, which counts in blocks, is exact, too."""
    from spark13b.config.model import SparkConfig

    npu, width = chip is not None, 64 if chip is None else 256
    return SparkConfig(
        num_layers=1,
        hidden_size=width,
        num_heads=_HEADS,
        ffn_hidden_size=width,
        vocab_size=64,
        seq_length=width,
        sparse_local_size=width if npu else 16,
        compute_type="float16" if npu else "float32",
    )


if __name__ == "__main__":
    main()
