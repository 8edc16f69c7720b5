"""The run-back check: exported graphs, loaded in a fresh process, must choose the tokens that the model chooses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spark13b.data.tokenizer import SparkTokenizer
from spark13b.errors import JobError
from spark13b.infer.export.manifest import Check
from spark13b.infer.export.shapes import CHECKED_TOKENS, MOST_CHECKED, ExportShapes
from spark13b.infer.generation import generate
from spark13b.model.causal_lm import SparkForCausalLM

_QUESTIONS = ("你是谁？", "What is 3 plus 5?", "请用一句话介绍北京。")
_LONG = "从前有座山，山里有座庙，庙里有个老和尚在讲故事。Once upon a time there was a mountain. "
# a choice between two tokens whose logits differ by less, as a share of the largest, is the rounding's
_TIE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Question:
    """A prompt, and how many tokens to compare behind it."""

    prompt: list[int]
    tokens: int


def questions_of(tokenizer: SparkTokenizer, template: str, shapes: ExportShapes) -> list[Question]:
    """A few prompts that fit the shapes, and one as long as they allow, which outgrows the rings if it can."""
    longest = min(shapes.prompt_length, shapes.context - 1)
    short = [tokenizer.encode(template.format(text))[:longest] for text in _QUESTIONS]
    long = tokenizer.encode(_LONG)
    long = (long * (longest // len(long) + 1))[:longest]
    past = shapes.slots + CHECKED_TOKENS - len(long)  # tokens that take the long one past the rings
    wanted = past if CHECKED_TOKENS < past <= MOST_CHECKED else CHECKED_TOKENS
    return [
        Question(prompt, min(count, shapes.context - len(prompt)))
        for prompt, count in [*((prompt, CHECKED_TOKENS) for prompt in short), (long, wanted)]
    ]


def check_export(
    folder: Path, model: SparkForCausalLM, tokenizer: SparkTokenizer, template: str, shapes: ExportShapes
) -> Check:
    """Compare greedy tokens of the graphs in `folder` with `generate`. Raises JobError when they differ."""
    questions = questions_of(tokenizer, template, shapes)
    expected = [generate(model, question.prompt, question.tokens) for question in questions]
    texts = [
        {"prompt": question.prompt, "tokens": tokens} for question, tokens in zip(questions, expected, strict=True)
    ]
    ties = 0
    limit = _TIE[model.config.compute_type]
    for question, tokens, result in zip(questions, expected, _fresh_process(folder, texts), strict=True):
        for place, (token, chosen, short) in enumerate(zip(tokens, result["chosen"], result["short"], strict=True)):
            if token == chosen:
                continue
            if not short <= limit:  # nan fails it too
                raise JobError(
                    f"the exported graphs do not answer as the model does: token {place + 1} after a prompt of "
                    f"{len(question.prompt)} tokens is {chosen} instead of {token}",
                    where=folder.name,
                    fix="nothing was written; please report it with the preset and the versions of MindSpore",
                )
            ties += 1
    passed = any(len(question.prompt) + question.tokens - 1 > shapes.slots for question in questions)
    return Check(prompts=len(questions), tokens=sum(map(len, expected)), ties=ties, passed_window=passed)


def _fresh_process(folder: Path, texts: Sequence[dict[str, list[int]]]) -> list[dict[str, list[float]]]:
    """What `run_back.run_back` finds in a process that knows nothing but the folder."""
    with tempfile.TemporaryDirectory(prefix="spark13b-check-") as work:
        asked, answers = Path(work) / "questions.json", Path(work) / "answers.json"
        asked.write_text(json.dumps(texts))
        words = [
            sys.executable,
            "-m",
            "spark13b.infer.export.run_back",
            str(folder.absolute()),
            str(asked),
            str(answers),
        ]
        done = subprocess.run(words, cwd=work, env=_environment(), capture_output=True, text=True, errors="replace")
        if done.returncode or not answers.is_file():
            said = [line for line in done.stderr.splitlines() if line.strip()]
            ended = f"by signal {-done.returncode}" if done.returncode < 0 else f"with {done.returncode}"
            raise JobError(
                f"the exported graphs do not run: the process that loads them ended {ended}"
                + (f": {said[-1]}" if said else ""),
                where=folder.name,
                fix="it loads the weights twice, beside the model: with little memory add --no-check",
            )
        found: list[dict[str, list[float]]] = json.loads(answers.read_text())
        return found


def _environment() -> dict[str, str]:
    """This process's, with its import path: the check must load this very spark13b."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
