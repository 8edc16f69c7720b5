"""Run by msrun in the tests: the greedy answers of a small model that two processes share, and beams, written as JSON.

together_worker.py SOCKET OUTPUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

CASES: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 12},
    {"max_new_tokens": 20},
    {"max_new_tokens": 7, "do_sample": True, "temperature": 2.0, "seed": 3},
    {"max_new_tokens": 9, "num_beams": 3},
)
SHAPE = {"window": 8, "context": 64, "hidden_size": 32, "num_heads": 4, "vocab_size": 38}


def answers(engine: Any) -> list[list[int]]:
    """The answers to four prompts at once."""
    from infer.small_model import random_texts
    from spark13b.config.sections import GenerationConfig
    from spark13b.infer.requests import Request

    prompts = random_texts(5, 30, 9, 12)
    found = [engine.add(Request(prompt, GenerationConfig(**case))) for prompt, case in zip(prompts, CASES, strict=True)]
    while engine.busy:
        engine.step()
    return [[token.id for token in one.tokens] for one in found]


def main() -> None:
    from spark13b.cluster import worker
    from spark13b.model.mesh import meet

    if worker.is_scheduler():
        worker.schedule(meet)
        return
    with worker.reporting() as me:
        socket, output = map(Path, sys.argv[1:])
        share(socket, output)
        me.write_result({})


def share(socket: Path, output: Path) -> None:
    """Process 0 answers, process 1 follows."""
    from infer.small_model import small_model
    from spark13b.config.sections import ParallelConfig
    from spark13b.infer.engine import Engine
    from spark13b.infer.together import Followers, follow
    from spark13b.model.mesh import join
    from spark13b.model.transformer import Setup

    mesh = join(ParallelConfig(model_parallel=2))
    model, _ = small_model(**SHAPE, setup=Setup(mesh=mesh))
    if mesh.world.index:
        follow(model, socket)
        return
    with Followers(socket, count=1) as followers:
        engine = Engine(model, seats=3, chunk=16, make_decoder=followers.decoder)
        output.write_text(json.dumps(answers(engine)))


if __name__ == "__main__":
    main()
