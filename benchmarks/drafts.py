"""What guessed tokens save and cost (`--draft-tokens`), on real texts by the measured time of a step of several rows.

    python benchmarks/drafts.py --data DIR [--sizes 120m] [--kinds float32 int8 int4] [--rounds 7] [--most 4 8 15]

DIR has the four files of real data (alpaca_zh_demo.json and so on, see `preprocess.py`). A tokenizer of 16,000 pieces
is trained on them. Each answer is walked through as if a model wrote it, token by token, with the guesses that the
engine would make: that is how many steps of how many rows it takes. Their time is measured on random weights, one text,
two threads, medians of rounds. Answers: those of the data, the continuations of pages, and pages that are in the prompt
and come again with every 20th word another, as of a text that is to be corrected.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from native import ONE_B, SMALL, USUAL, prompt, spark_model, timed

SIZES = {"120m": USUAL, "1b": ONE_B, "quick": SMALL}
PROMPT, ANSWER = 200, 300  # tokens of plain texts
MOST = 16  # rows


def pairs(folder: Path) -> Iterator[tuple[str, str, str]]:
    """What kind of text, prompt, answer; of plain text no prompt."""
    for one in json.loads((folder / "alpaca_zh_demo.json").read_text(encoding="utf-8")):
        yield "Chinese answers", one["instruction"] + one["input"], one["output"]
    for one in json.loads((folder / "glaive_toolcall_zh_demo.json").read_text(encoding="utf-8")):
        said = one["tools"]
        for message in one["conversations"]:
            if message["from"] in ("gpt", "function_call"):
                yield "Chinese tool calls", said, message["value"]
            said += "\n" + message["value"]
    for line in (folder / "c4_demo.jsonl").read_text(encoding="utf-8").splitlines():
        page = json.loads(line)["text"]
        yield "English web pages", "", page
        words = page.split(" ")
        again = " ".join(words[at if at % 20 else at // 2] for at in range(len(words)))
        yield "English web pages again, corrected", page, again
    for line in (folder / "wiki_demo.txt").read_text(encoding="utf-8").splitlines():
        yield "English encyclopedia", "", line


def texts(folder: Path) -> dict[str, list[tuple[list[int], list[int]]]]:
    """Kind -> prompts and answers as tokens."""
    import sentencepiece

    found = list(pairs(folder))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(part[:4000] for _, *both in found for part in both if part),
        model_writer=model,
        vocab_size=16_000,
        character_coverage=0.9995,
        byte_fallback=True,
        model_type="bpe",
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kinds: dict[str, list[tuple[list[int], list[int]]]] = {}
    for kind, asked, answer in found:
        tokens = processor.encode(answer)
        if asked:
            kinds.setdefault(kind, []).append((processor.encode(asked), tokens))
        elif len(tokens) > PROMPT:
            kinds.setdefault(kind, []).append((tokens[:PROMPT], tokens[PROMPT : PROMPT + ANSWER]))
    return kinds


def walk(asked: list[int], answer: list[int], most: int) -> Counter[int]:
    """Rows -> steps with so many, for an answer whose first token the prompt gives."""
    from spark13b.infer.drafts import Drafts

    drafts, steps, done = Drafts([*asked, *answer[:1]], most), Counter[int](), 1
    while done < len(answer):
        guesses = drafts.guess(len(answer) - done - 1)
        steps[1 + len(guesses)] += 1
        right = 0
        while right < len(guesses) and guesses[right] == answer[done + right]:
            right += 1
        for token in answer[done : done + right + 1]:
            drafts.add(token)
        if guesses:
            drafts.judge(len(guesses), right)
        done += right + 1
    return steps


def costs(name: str, kind: str, rounds: int) -> list[float]:
    """Seconds of a step of 1 to MOST rows of one text."""
    from spark13b.infer.native_decoder import NativeDecoder

    size = SIZES[name]
    decoder = NativeDecoder(spark_model(size, 512, kind)[0], 512, 0, 256)
    decoder.read(prompt(size, PROMPT), 0)

    def step(rows: int) -> float:
        return timed(lambda: decoder.step([0] * rows, [7] * rows, [*range(PROMPT, PROMPT + rows)]))

    found = [[min(step(rows) for _ in range(3)) for rows in range(1, MOST + 1)] for _ in range(rounds)]
    return [statistics.median(each) for each in zip(*found, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["120m"])
    parser.add_argument("--kinds", nargs="+", default=["float32", "int8", "int4"])
    parser.add_argument("--most", nargs="+", type=int, default=[4, 8, 15])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
    chosen = [(size, kind) for size in arguments.sizes for kind in arguments.kinds]
    seconds = {(size, kind): costs(size, kind, arguments.rounds) for size, kind in chosen}
    for (size, kind), each in seconds.items():
        shown = ", ".join(f"{rows}: {each[rows - 1] / each[0]:.2f}" for rows in (2, 4, 8, 16))
        print(f"{size} {kind}: a step takes {each[0] * 1e3:.1f} ms; rows and times as long: {shown}")
    names = [f"{size} {kind}" for size, kind in seconds]
    print(f"\n| text | up to | tokens a step | {' | '.join(names)} |\n{'|---' * (3 + len(names))}|")
    for text, both in texts(arguments.data).items():
        for most in arguments.most:
            steps = sum((walk(asked, answer, most) for asked, answer in both), Counter[int]())
            tokens = sum(max(len(answer) - 1, 0) for _, answer in both)
            cells = [
                f"{tokens * each[0] / sum(each[rows - 1] * count for rows, count in steps.items()):.2f}"
                for each in seconds.values()
            ]
            print(f"| {text} | {most} | {tokens / steps.total():.2f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
