"""The native library beside torch, llama.cpp and the machine's own bounds: prefill and decode of each weight type.

    python benchmarks/native.py [--parts prefill decode 1b] [--rounds 7] [--quick]

Two threads everywhere; random weights; each side is a process that lives through all rounds and waits while the others
work. In each round, by turns, every side does the same once:

- prefill: a prompt of 512 and one of 4096 tokens, in float32 and in bfloat16, at 120M parameters. The other side is
  transformers' Llama of the same shape on torch (sdpa), in the same type.
  Ours also reads them in float32 from weights of 16 bits, beside the other sides' float32.
- decode: 32 tokens after a prompt of 32, at 120M parameters, with weights of float32, bfloat16, int8 and int4 (the
  embedding then in int8), and in float32 from weights of 16 bits, beside the other sides' float32. The other sides are
  torch (float32) and llama.cpp by llama-cpp-python with F32, F16, Q8_0 and Q4_0 (its embedding then in Q8_0);
  llama.cpp is left out when it is not installed (pip install llama-cpp-python gguf).
- 1b: decode alone, at 0.9B parameters with int8 and int4.

The bounds are measured by our process in the same rounds: the rate at which two threads read 1 GB (the highest of three
ways), and the products of 2048 x 2048 matrices. A token reads all weights once, so decode's bound is that rate by the
bytes of the weights as they are stored.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ctypes import CFUNCTYPE, c_char_p, c_int, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from sides import SIZES, THREADS, OtherPrograms, Side, Size, answering, llama, spark_config, wait_for_quiet, worker

USUAL = SIZES["120m"]
ONE_B = Size("1b", layers=16, hidden=2048, heads=16, ffn=5632, vocabulary=32000, batch=1)
SMALL = Size("quick", layers=2, hidden=256, heads=2, ffn=768, vocabulary=1000, batch=1)
PROMPTS = (512, 4096)
SHORT, NEW = 32, 32
GIGABYTE = 1 << 30
WIDENED = "float32 of bfloat16"  # products of float32 by weights of bfloat16
LLAMA = {"float32": "F32", "bfloat16": "F16", "int8": "Q8_0", "int4": "Q4_0"}

Work = Callable[[], float]  # -> tokens a second


def prompt(size: Size, length: int) -> np.ndarray:
    """Random tokens."""
    return np.random.default_rng(length).integers(0, size.vocabulary, length).astype(np.int32)


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --- ours


def spark_model(size: Size, context: int, kind: str) -> tuple[Any, int]:
    """Our model with random weights of one type, and its bytes."""
    from spark13b.infer.native_model import NativeModel
    from spark13b.model.names import expected_shapes, is_embedding
    from spark13b.native.library import find_library

    library = find_library().library
    assert library is not None, "build it: spark13b native build"
    config = spark_config(size, context, "bfloat16" if kind == "bfloat16" else "float32")
    rng = np.random.default_rng(0)
    parameters = {
        name: random_weight(rng, shape, "int8" if is_embedding(name) and kind == "int4" else kind)
        for name, shape in expected_shapes(config).items()
    }
    return NativeModel(config, parameters, library), sum(map(bytes_of, parameters.values()))


def random_weight(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> Any:
    """An array or matrix."""
    from spark13b.native.matrix import BFLOAT16, Matrix

    if len(shape) == 1 or kind == "float32":
        return rng.standard_normal(shape, np.float32) * np.float32(0.02)
    if kind in ("bfloat16", WIDENED):
        return (rng.standard_normal(shape, np.float32) * np.float32(0.02)).astype(BFLOAT16)
    outputs, inputs = shape
    scales = np.full((outputs, inputs // 64), 0.02 / 50, BFLOAT16)
    if kind == "int8":
        return Matrix(rng.integers(-127, 128, shape, np.int8), scales, 64)
    return Matrix(rng.integers(0, 256, (outputs, inputs // 2), np.uint8), scales, 64)


def bytes_of(parameter: Any) -> int:
    """As it is stored."""
    arrays = [parameter] if isinstance(parameter, np.ndarray) else [parameter.array, parameter.scales]
    return sum(array.nbytes for array in arrays if array is not None)


def spark_work(size: Size) -> tuple[dict[str, Work], dict[str, float]]:
    """What ours does, and bytes of the weights by kind."""
    from spark13b.infer.native_decoder import NativeDecoder

    runs: dict[str, Work] = {}
    sizes: dict[str, float] = {}
    longest = max(PROMPTS)

    def decode(decoder: Any) -> float:
        decoder.read(prompt(size, SHORT), 0)
        return NEW / timed(lambda: [decoder.step([0], [7], [SHORT + at]) for at in range(NEW)])

    def prefill(decoder: Any, length: int) -> float:
        return length / timed(
            lambda: [decoder.read(prompt(size, length)[at : at + 512], at) for at in range(0, length, 512)]
        )

    for kind in ("int8", "int4") if size.name == "1b" else ("float32", WIDENED, "bfloat16", "int8", "int4"):
        model, nbytes = spark_model(size, longest, kind)
        sizes[kind] = nbytes
        short, long = NativeDecoder(model, 256, 0, 512), NativeDecoder(model, longest, 0, 512)
        runs[f"decode {kind}"] = lambda decoder=short: decode(decoder)
        if kind in ("float32", WIDENED, "bfloat16"):
            for length in PROMPTS:
                runs[f"prefill {kind} {length}"] = lambda decoder=long, length=length: prefill(decoder, length)

    block = np.ones(GIGABYTE // 4, np.float32)
    halves = np.split(block, THREADS)
    pool = ThreadPoolExecutor(THREADS)
    matrix, vector = block.reshape(-1, 4096), np.ones(4096, np.float32)
    from spark13b.native.products import multiply

    products: dict[str, Any] = {}
    for kind in ("float32", "bfloat16"):
        a = random_weight(np.random.default_rng(1), (2048, 2048), kind)
        products[kind] = (a, a.T, np.empty((2048, 2048), np.float32))
    ways = {
        "sums": lambda: list(pool.map(np.sum, halves)),
        "maxima": lambda: list(pool.map(np.max, halves)),
        "product": lambda: matrix @ vector,
    }
    runs["bandwidth"] = lambda: GIGABYTE / min(timed(way) for way in ways.values())
    for kind, arrays in products.items():
        runs[f"product {kind}"] = lambda arrays=arrays: (
            2 * 2048**3 / timed(lambda: multiply(model.library, *arrays, threads=THREADS))
        )
    return runs, sizes


# --- torch


def torch_work(size: Size) -> tuple[dict[str, Work], dict[str, float]]:
    """The same of transformers on torch."""
    import torch

    runs: dict[str, Work] = {}
    for kind in ("float32", "bfloat16"):
        model = llama(size, max(PROMPTS)).to(getattr(torch, kind)).eval()

        def read(length: int, model: Any = model) -> Any:
            ids = torch.tensor(prompt(size, length)[None].astype(np.int64))
            with torch.inference_mode():
                return model(ids, use_cache=True, logits_to_keep=1)

        def decode(model: Any = model, read: Any = read) -> float:
            cache = read(SHORT).past_key_values
            token = torch.tensor([[7]])
            with torch.inference_mode():
                return NEW / timed(
                    lambda: [model(token, past_key_values=cache, use_cache=True).logits for _ in range(NEW)]
                )

        runs[f"decode {kind}"] = decode
        for length in PROMPTS:
            runs[f"prefill {kind} {length}"] = lambda read=read, length=length: length / timed(lambda: read(length))
    return runs, {}


# --- llama.cpp


def llama_file(size: Size, kind: str, folder: Path) -> Path:
    """A GGUF file of the same shape with random weights."""
    import gguf

    path = folder / f"{size.name}-{kind}.gguf"
    wanted = gguf.GGMLQuantizationType[LLAMA[kind]]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(max(PROMPTS))
    writer.add_embedding_length(size.hidden)
    writer.add_block_count(size.layers)
    writer.add_feed_forward_length(size.ffn)
    writer.add_head_count(size.heads)
    writer.add_head_count_kv(size.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(size.hidden // size.heads)
    writer.add_vocab_size(size.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(0)

    def matrix(name: str, outputs: int, inputs: int, kept: Any = wanted) -> None:
        array = rng.standard_normal((outputs, inputs), np.float32) * np.float32(0.02)
        writer.add_tensor(name, gguf.quants.quantize(array, kept), raw_dtype=kept)

    quantised = kind in ("int8", "int4")
    matrix("token_embd.weight", size.vocabulary, size.hidden, gguf.GGMLQuantizationType.Q8_0 if quantised else wanted)
    for layer in range(size.layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(size.hidden, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{name}.weight", size.hidden, size.hidden)
        for name in ("ffn_gate", "ffn_up"):
            matrix(f"blk.{layer}.{name}.weight", size.ffn, size.hidden)
        matrix(f"blk.{layer}.ffn_down.weight", size.hidden, size.ffn)
    writer.add_tensor("output_norm.weight", np.ones(size.hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_work(size: Size) -> tuple[dict[str, Work], dict[str, float]]:
    """The same of llama.cpp."""
    runs: dict[str, Work] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("int8", "int4") if size.name == "1b" else ("float32", "bfloat16", "int8", "int4"):
            path = llama_file(size, kind, Path(folder))
            feed, clear = llama_model(path)
            path.unlink()

            def decode(feed: Any = feed, clear: Any = clear) -> float:
                clear()
                feed(prompt(size, SHORT).tolist())
                return NEW / timed(lambda: [feed([7]) for _ in range(NEW)])

            def prefill(feed: Any = feed, clear: Any = clear) -> float:
                clear()
                return 512 / timed(lambda: feed(prompt(size, 512).tolist()))

            runs[f"decode {kind}"] = decode
            if kind in ("float32", "bfloat16"):
                runs[f"prefill {kind} 512"] = prefill
    return runs, {}


SILENT = CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda *_: None)  # what llama.cpp says of each of its buffers


def llama_model(path: Path) -> tuple[Callable[[list[int]], None], Callable[[], None]]:
    """A function that appends tokens to llama.cpp's text and computes the last one's logits; one that clears it."""
    import llama_cpp as ll

    ll.llama_log_set(SILENT, None)
    ll.llama_backend_init()
    settings = ll.llama_model_default_params()
    settings.use_mmap = False
    model = ll.llama_model_load_from_file(str(path).encode(), settings)
    of_text = ll.llama_context_default_params()
    of_text.n_ctx, of_text.n_batch, of_text.n_ubatch = 1024, 512, 512
    of_text.n_threads = of_text.n_threads_batch = THREADS
    context = ll.llama_init_from_model(model, of_text)

    def feed(ids: list[int]) -> None:
        tokens = (ll.llama_token * len(ids))(*ids)
        if ll.llama_decode(context, ll.llama_batch_get_one(tokens, len(ids))) != 0:
            raise SystemExit("llama.cpp failed")
        ll.llama_get_logits_ith(context, -1)

    return feed, lambda: ll.llama_memory_clear(ll.llama_get_memory(context), True)


SIDES: dict[str, Callable[[Size], tuple[dict[str, Work], dict[str, float]]]] = {
    "spark13b": spark_work,
    "torch": torch_work,
    "llama.cpp": llama_work,
}


def work(side: str, size: Size) -> None:
    """One side's process: a line names the work that is to be done once."""
    with answering() as tell:
        runs, sizes = SIDES[side](size)
        for run in runs.values():
            run()  # warm
        tell({**sizes, **dict.fromkeys(runs, 1.0)})
        for line in sys.stdin:
            if size.name != SMALL.name:
                wait_for_quiet()
            others = OtherPrograms()
            rate = runs[line.strip()]()
            tell({"rate": rate, "others": others.share()})


# --- the tables


def compare(size: Size, kinds: list[str], sides: list[str], rounds: int) -> tuple[dict[tuple[str, str], float], Any]:
    """(side, work) -> the median rate, and what our process said at first."""
    with ExitStack() as stack:
        workers: dict[str, tuple[Side, dict[str, float]]] = {
            side: stack.enter_context(worker(__file__, side, size)) for side in sides
        }
        found: dict[tuple[str, str], list[float]] = {}
        for number in range(rounds):
            for kind in [*kinds, "bandwidth", "product float32", "product bfloat16"]:
                for side, (ask, can) in workers.items():
                    if kind in can:
                        found.setdefault((side, kind), []).append(ask(kind)["rate"])
            print(f"{size.name}: round {number + 1} of {rounds}", file=sys.stderr)
        return {key: statistics.median(rates) for key, rates in found.items()}, workers["spark13b"][1]


def row(rates: dict[tuple[str, str], float], sizes: Any, size: Size, kind: str) -> str:
    """One line of the table."""
    ours, cells = rates["spark13b", kind], []
    for side in ("torch", "llama.cpp"):
        theirs = rates.get((side, kind.replace(WIDENED, "float32")))
        cells += ["", ""] if theirs is None else [f"{theirs:,.1f}", f"{ours / theirs:.2f}"]
    bound = ""
    if kind.startswith("decode"):
        most = rates["spark13b", "bandwidth"] / sizes[kind.removeprefix("decode ")]
        bound = f"{ours / most:.2f} of {most:,.1f}"
    return f"| {size.name} | {kind} | {ours:,.1f} | {' | '.join(cells)} | {bound} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("prefill", "decode", "1b"), default=["prefill", "decode", "1b"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a small model, to see that the script runs")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work[0], Size(**json.loads(arguments.work[1])))
        return
    there = ["llama.cpp"] if find_spec("llama_cpp") and find_spec("gguf") else []
    if not there:
        print("llama.cpp is left out: pip install llama-cpp-python gguf", file=sys.stderr)
    rows = []
    ceilings: list[str] = []
    usual = SMALL if arguments.quick else USUAL
    for size, parts in ((usual, {"prefill", "decode"}), (ONE_B, {"1b"})):
        wanted = parts & set(arguments.parts)
        if not wanted or (size is ONE_B and arguments.quick):
            continue
        types = ["int8", "int4"] if size is ONE_B else ["float32", WIDENED, "bfloat16", "int8", "int4"]
        kinds = []
        if "prefill" in wanted:
            kinds = [f"prefill {kind} {length}" for length in PROMPTS for kind in ("float32", WIDENED, "bfloat16")]
        if wanted & {"decode", "1b"}:
            kinds += [f"decode {kind}" for kind in types]
        sides = ["spark13b", *(["torch"] if size is usual else []), *there]
        rates, sizes = compare(size, kinds, sides, arguments.rounds)
        rows += [row(rates, sizes, size, kind) for kind in kinds]
        ceilings.append(
            f"{size.name}: memory is read at {rates['spark13b', 'bandwidth'] / 1e9:.1f} GB/s; products reach "
            f"{rates['spark13b', 'product float32'] / 1e9:.0f} GFLOP/s in float32, "
            f"{rates['spark13b', 'product bfloat16'] / 1e9:.0f} in bfloat16"
        )
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
    print("\n".join(ceilings) + "\n")
    print(
        "| size | work, tokens/s | spark13b | torch | ratio | llama.cpp | ratio | of the bound |\n" + "|---" * 8 + "|"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
