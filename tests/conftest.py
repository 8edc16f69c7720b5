"""What tests of several folders share: the golden file of the original's outputs, and a model with its weights.

Nothing here loads MindSpore before a test asks for a model, unless pytest-xdist divides the tests.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from model.golden_config import golden_config

# Tests may import protobuf before MindSpore, whose generated code works with the pure Python implementation only.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
# The processes that tests start would compile all our modules again, an eighth of a second each time
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The same examples everywhere, however long a machine takes over one or over drawing it
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("steady")

if "PYTEST_XDIST_WORKER" in os.environ:  # any test may come first there, and MindSpore's context must
    from spark13b.model.device import device

    device()

# Files that take longest, which two processes begin with: one that is begun last is waited for alone
SLOW = (
    *("train/test_parallel.py", "cli/test_train_infer.py", "train/test_memory.py", "cli/test_train_together.py"),
    *("infer/test_decoder.py", "cluster/test_launch.py", "infer/test_export.py", "cli/test_infer.py"),
    *("train/test_native_training.py", "train/test_native_lora.py", "data/test_jobs.py", "cli/test_preprocess.py"),
    *("model/test_golden.py", "train/test_lora.py", "test_docs.py", "model/test_long_context.py"),
    *("train/test_run.py", "model/test_against_numpy.py", "train/test_step.py", "cli/test_lora.py"),
    *("train/test_recompute.py", "train/test_training.py", "demo/test_run.py", "serve/test_server.py"),
    *("cli/test_ckpt.py", "infer/test_native_decoder.py", "ckpt/test_formats.py", "train/test_optimizer.py"),
    *("cli/test_tokenizer.py", "infer/test_loading.py", "data/test_mindrecord.py", "demo/test_corpus.py"),
    *("data/test_engine.py", "cli/test_convert.py", "cli/test_eval.py", "cli/test_doctor.py"),
    *("train/test_evaluation.py", "serve/test_page.py", "serve/test_limits.py", "model/test_dropout.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first; the order inside a file stays."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


GOLDEN = Path(__file__).parent / "golden" / "reference.npz"


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """Every array of the golden file."""
    with np.load(GOLDEN) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="session")
def golden_weights(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Full name -> weight of the original's model."""
    return {name.removeprefix("weights/"): array for name, array in golden.items() if name.startswith("weights/")}


@pytest.fixture(scope="session")
def golden_model(golden_weights: dict[str, np.ndarray]) -> Any:
    """The original's model in spark13b, window 32. Tests that change its weights load them again."""
    from spark13b.model import SparkForCausalLM

    model = SparkForCausalLM(golden_config(), seed=None)
    model.load_state(golden_weights)
    return model


@pytest.fixture(scope="session")
def native_library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The native library of this source, compiled by this machine's compiler; tests are skipped where there is none.

    SPARK13B_TEST_LIBRARY names another, as native/test_sanitizers.py does.
    """
    from spark13b.native.build import build, cache_folder, find_compiler, library_name, source_folder
    from spark13b.native.library import Library

    if "SPARK13B_TEST_LIBRARY" in os.environ:
        return Library(Path(os.environ["SPARK13B_TEST_LIBRARY"]))
    for folder in (source_folder(), cache_folder()):
        if (folder / library_name()).is_file():
            return Library(folder / library_name())
    if find_compiler() is None:
        pytest.skip("there is no C++ compiler")
    return Library(build(tmp_path_factory.mktemp("native")))


@pytest.fixture(scope="session")
def golden_gradients(golden_model: Any) -> Any:
    """Loss and gradients of `golden_model`, compiled once: a function of ids (B, T+1) and the mask of the targets."""
    from model.compiled import loss_and_gradients

    return loss_and_gradients(golden_model)
