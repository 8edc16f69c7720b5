"""The calls to Ascend's fused kernels, with stand-ins that compute in NumPy what the kernels' documentation says.

No NPU is here: these tests hold the arguments to the contract (shared/SPEC.md, section 9, and the documentation of
`mindspore.ops.flash_attention_score`), not the kernels to theirs.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from model.numpy_model import Array, attention
from spark13b.config.model import SparkConfig
from spark13b.model.attention import attend, choose
from spark13b.model.attention.attend import Attend, make_backend
from spark13b.model.attention.fused import AccTransformerAttention, AscendAttention
from spark13b.model.attention.plain import PlainAttention

HEADS, SIZE = 2, 16


def config(window: int, **changes: Any) -> SparkConfig:
    shape: dict[str, Any] = {
        "hidden_size": HEADS * SIZE,
        "num_heads": HEADS,
        "sparse_local_size": window,
        "compute_type": "float16",
    }
    return SparkConfig(**(shape | changes))


def random_inputs(tokens: int) -> list[Array]:
    rng = np.random.default_rng(tokens)
    return [rng.standard_normal((2, HEADS, tokens, SIZE)).astype(np.float16) for _ in range(3)]


def run(backend: Any, inputs: list[Array]) -> Array:
    """A backend's cell as plain Python, without a graph."""
    batch, heads, tokens, _ = inputs[0].shape
    mask = backend.mask(Tensor(0, mindspore.int32), batch, heads, tokens)
    out = backend.construct(*(Tensor(array) for array in inputs), mask)
    assert out.shape == inputs[0].shape
    return out.asnumpy().astype(np.float64)


def masked_attention(q: Array, k: Array, v: Array, scale: float, visible: Array) -> Array:
    scores = np.where(visible, q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2) * scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v.astype(np.float64)


class TestAscend:
    """`ops.flash_attention_score`, sparse_mode 4 (band)."""

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def flash_attention_score(  # the parameters and defaults of MindSpore 2.9
            query: Any,
            key: Any,
            value: Any,
            head_num: int,
            real_shift: Any = None,
            drop_mask: Any = None,
            padding_mask: Any = None,
            attn_mask: Any = None,
            prefix: Any = None,
            actual_seq_qlen: Any = None,
            actual_seq_kvlen: Any = None,
            keep_prob: float = 1.0,
            scalar_value: float = 1.0,
            pre_tokens: int = 2147483647,
            next_tokens: int = 2147483647,
            inner_precise: int = 0,
            input_layout: str = "BSH",
            sparse_mode: int = 0,
        ) -> Any:
            calls.append(dict(locals()))
            assert query.dtype in (mindspore.float16, mindspore.bfloat16)
            assert query.dtype == key.dtype == value.dtype
            assert input_layout == "BNSD"
            assert head_num == query.shape[1]
            assert sparse_mode == 4, "the band: from pre_tokens before the query to next_tokens after it"
            assert attn_mask.shape == (2048, 2048), "which takes a compressed mask of this size"
            assert attn_mask.dtype in (mindspore.bool_, mindspore.uint8)
            np.testing.assert_array_equal(attn_mask.asnumpy(), np.triu(np.ones((2048, 2048)), k=1))  # 1 is discarded
            i, j = np.arange(query.shape[2])[:, None], np.arange(key.shape[2])
            visible = (i - pre_tokens <= j) & (j <= i + next_tokens)
            q, k, v = (array.asnumpy() for array in (query, key, value))
            return Tensor(masked_attention(q, k, v, scalar_value, visible).astype(np.float16))

        monkeypatch.setattr(mindspore.ops, "flash_attention_score", flash_attention_score)
        return calls

    @pytest.mark.parametrize("window", [1, 7, 100, 8192])
    def test_the_band_is_the_window(self, window: int, calls: list[dict[str, Any]]) -> None:
        inputs = random_inputs(100)
        out = run(AscendAttention(config(window)), inputs)
        plain = run(PlainAttention(config(window, compute_type="float32")), [array.astype("f4") for array in inputs])
        np.testing.assert_allclose(out, plain, atol=2e-3)
        np.testing.assert_allclose(out, attention(*(array.astype(float) for array in inputs), window), atol=2e-3)

    def test_the_kernel_is_told_the_window_the_scale_and_no_dropout(self, calls: list[dict[str, Any]]) -> None:
        run(AscendAttention(config(8192)), random_inputs(3))
        (call,) = calls
        assert (call["pre_tokens"], call["next_tokens"]) == (8191, 0)
        assert call["scalar_value"] == pytest.approx(1 / math.sqrt(SIZE))
        assert call["keep_prob"] == 1.0
        unused = ("real_shift", "drop_mask", "padding_mask", "prefix", "actual_seq_qlen", "actual_seq_kvlen")
        assert all(call[name] is None for name in unused)

    def test_our_call_fits_the_installed_function(self) -> None:
        """The stand-in has the real one's parameters, so that a renamed one is noticed."""
        import inspect

        real = inspect.signature(mindspore.ops.flash_attention_score).parameters
        used = ["attn_mask", "scalar_value", "pre_tokens", "next_tokens", "input_layout", "sparse_mode"]
        assert list(real)[:4] == ["query", "key", "value", "head_num"]
        assert set(used) <= set(real)


KERNEL = """
import numpy as np
from mindspore import Tensor

MADE = []  # the arguments of every kernel


class FlashAttention:
    def __init__(self, {parameters}):
        arguments = dict(locals())
        del arguments["self"]
        MADE.append(arguments)
        self.size, self.before, self.after = head_dim, prev_block_num, next_block_num

    def __call__(self, q, k, v, attn_mask):
        assert attn_mask.shape == (1, 128, 128)
        q, k, v = (array.asnumpy().astype(np.float64) for array in (q, k, v))
        own = attn_mask.asnumpy()[0] == 1
        tokens = q.shape[2]
        assert tokens % 128 == 0 and q.shape[3] == self.size
        out = np.zeros(q.shape)
        for block in range(tokens // 128):
            first, last = max(block - self.before, 0), min(block + self.after, tokens // 128 - 1)
            queries, keys = slice(block * 128, block * 128 + 128), slice(first * 128, last * 128 + 128)
            scores = q[:, :, queries] @ k[:, :, keys].swapaxes(-1, -2) / np.sqrt(self.size)
            start = (block - first) * 128
            scores[..., start:start + 128] += np.where(own, -np.inf, 0)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, :, queries] = weights / weights.sum(-1, keepdims=True) @ v[:, :, keys]
        return Tensor(out.astype(np.float16))
"""
ISSUED = "head_dim, head_num, dropout_rate=0.0, prev_block_num=65536, next_block_num=65536, "
RELEASES = {
    "as in section 9": ISSUED + "dp=1, mp=1, high_precision=False",
    "without head_num": ISSUED.replace("head_num, ", "") + "tiling_stgy_name='sparse', dp=1, mp=1",
    "without high_precision": ISSUED + "dp=1, mp=1",
    "with have_attention_mask_batch": ISSUED + "dp=1, mp=1, high_precision=False, have_attention_mask_batch=True",
}


class TestAccTransformer:
    """The package's FlashAttention, which sees whole blocks of 128 tokens."""

    @pytest.fixture(params=RELEASES)
    def made(
        self, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """A stand-in for the package in one of its releases, and the arguments of the kernels that are made."""
        folder = tmp_path / "acctransformer" / "flash_attention" / "nn" / "layer"
        folder.mkdir(parents=True)
        for parent in [folder, *folder.parents][:4]:
            (parent / "__init__.py").touch()
        (folder / "flash_attention.py").write_text(KERNEL.replace("{parameters}", RELEASES[request.param]))
        monkeypatch.syspath_prepend(str(tmp_path))
        from acctransformer.flash_attention.nn.layer import flash_attention

        yield request.param, flash_attention.MADE
        for name in [name for name in sys.modules if name.split(".")[0] == "acctransformer"]:
            del sys.modules[name]

    def test_the_kernel_is_made_with_the_arguments_that_its_release_knows(
        self, made: tuple[str, list[dict[str, Any]]]
    ) -> None:
        release, kernels = made
        AccTransformerAttention(config(8192))
        (arguments,) = kernels
        expected = {
            "head_dim": SIZE,
            "head_num": HEADS,
            "dropout_rate": 0.0,
            "prev_block_num": 8192 // 128 - 1,
            "next_block_num": 0,
            "dp": 1,
            "mp": 1,
            "high_precision": True,
            "have_attention_mask_batch": False,
        }
        known = {name: value for name, value in expected.items() if name in RELEASES[release]}
        assert {name: arguments[name] for name in known} == known

    def test_within_the_window_it_is_plain_attention_whatever_the_length(
        self, made: tuple[str, list[dict[str, Any]]]
    ) -> None:
        backend = AccTransformerAttention(config(384))
        for tokens in (100, 256, 300):  # padded to 128, 256 and 384
            inputs = random_inputs(tokens)
            expected = attention(*(array.astype(float) for array in inputs), 384)
            np.testing.assert_allclose(run(backend, inputs), expected, atol=2e-3)

    def test_beyond_the_window_the_last_query_of_each_block_is_exact_and_none_sees_more(
        self, made: tuple[str, list[dict[str, Any]]]
    ) -> None:
        inputs = random_inputs(500)
        out = run(AccTransformerAttention(config(256)), inputs)
        exact = attention(*(array.astype(float) for array in inputs), 256)
        np.testing.assert_allclose(out[:, :, :256], exact[:, :, :256], atol=2e-3)
        np.testing.assert_allclose(out[:, :, 383], exact[:, :, 383], atol=2e-3)
        i, j = np.arange(500)[:, None], np.arange(500)
        visible = (i // 128 - 1 <= j // 128) & (j <= i)
        np.testing.assert_allclose(out, masked_attention(*inputs, 1 / math.sqrt(SIZE), visible), atol=2e-3)
        assert not (visible & (j <= i - 256)).any()


@pytest.mark.parametrize(("chip", "kind"), [("910B", AscendAttention), ("910A", PlainAttention)])
def test_attend_holds_the_one_backend_of_an_ascend_machine(
    chip: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a 910A without acctransformer, shape decides as it does on a CPU."""
    monkeypatch.setattr(attend, "device", lambda: "ascend")
    monkeypatch.setattr(choose, "ascend_chip", lambda: chip)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    cell = Attend(config(256))
    assert isinstance(cell.plain if cell.by_shape else cell.backend, kind)


@pytest.mark.parametrize("name", ["plain", "blocked", "ascend"])
def test_every_backend_has_the_seams_two_calls(name: str) -> None:
    backend = make_backend(name, config(256))
    assert callable(backend.mask)
    assert callable(backend.construct)
