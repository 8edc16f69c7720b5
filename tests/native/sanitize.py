"""Run the native library's tests with it compiled for the sanitizers: addresses and undefined behaviour, then threads.

    python tests/native/sanitize.py        (make sanitize)

The library is loaded by Python, so the sanitizers' own libraries come before all others. Their exit codes are pytest's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from spark13b.native.build import build, find_compiler

TESTS = Path(__file__).parent
FLAGS = ("-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
# a compiler under a sanitizer's library, and a process that would need it, are not what is tested
LEFT_OUT = "not TestBuilding and not without_onednn and not what_mindspore_raises"
KINDS = {
    "address,undefined": ("libasan.so", LEFT_OUT),
    # a piece of work is shared by threads in the same way whatever the type
    "thread": ("libtsan.so", f"({LEFT_OUT}) and (bits or threads) and not int8 and not int4-32 and not int4-128"),
}


def run(kind: str, folder: Path) -> int:
    """Build and test -> the exit code."""
    library, chosen = KINDS[kind]
    compiler = find_compiler()
    assert compiler is not None, "there is no C++ compiler"
    built = build(folder / kind, [*FLAGS, f"-fsanitize={kind}"])
    # Python lacks C++'s library, in which the sanitizer looks when the process begins for what throws exceptions
    ask = [[*compiler, f"-print-file-name={name}"] for name in (library, "libstdc++.so.6")]
    first = [subprocess.run(one, capture_output=True, text=True, check=True).stdout.strip() for one in ask]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(first),
        # leaks are Python's own at its end; where there is no memory the library gets none, as without the sanitizer
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "TSAN_OPTIONS": "halt_on_error=1",
        "SPARK13B_TEST_LIBRARY": str(built),
    }
    # threads' sanitizer knows no addresses as random as the newest kernels'
    command = ["setarch", "-R", sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--durations=0"]
    result = subprocess.run(
        [*command, "--durations-min=5", str(TESTS), "-k", chosen], env=environment, capture_output=True, text=True
    )
    print(f"== {kind}\n{result.stdout}{result.stderr}", flush=True)
    return result.returncode


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(KINDS)) as pool:
        codes = list(pool.map(lambda kind: run(kind, Path(folder)), KINDS))
    raise SystemExit(max(codes, key=abs))


if __name__ == "__main__":
    main()
