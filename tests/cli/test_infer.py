"""`spark13b infer` on a small model: prompts from everywhere, answers to everywhere, and what happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infer.small_run import write_small_run
from spark13b.native.library import find_library

ENVIRONMENT = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, for --load; answers of more than a few tokens pass the window."""
    options = {"model__num_layers": 1, "model__sparse_local_size": 16}
    return write_small_run(tmp_path_factory.mktemp("infer") / "run", **options)


@pytest.fixture
def infer(model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process: (exit code, stdout, stderr)."""
    from spark13b.cli.main import run

    def call(*arguments: object, stdin: str | None = None) -> tuple[int, str, str]:
        reading, writing = os.pipe()
        with os.fdopen(writing, "w") as file:
            file.write(stdin or "")
        with os.fdopen(reading) as given:
            monkeypatch.setattr("sys.stdin", given)
            capfd.readouterr()
            code = run(["infer", *map(str, arguments), "--load", str(model)])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class TestPrompts:
    def test_come_from_arguments_a_pipe_and_files_and_get_the_same_answers(self, infer: Run, tmp_path: Path) -> None:
        options = ("--json", "--max-new-tokens", 5)
        _, out, _ = infer("[你好##天气]", "x y", *options)
        expected = records(out)
        assert [record["input"] for record in expected] == ["你好", "天气", "x y"]
        assert records(infer(*options, stdin="你好\n\n天气\nx y\n")[1]) == expected
        lines = write_lines(
            tmp_path / "q.jsonl", {"input": "你好"}, {"inputs": "天气"}, {"instruction": "x", "input": " y"}
        )
        assert records(infer("--prompt-file", lines, "--max-new-tokens", 5)[1]) == expected

    def test_through_a_pipe_are_records_when_the_first_line_is_one(self, infer: Run, tmp_path: Path) -> None:
        lines = write_lines(tmp_path / "q.jsonl", {"input": "你好", "id": 7}, {"input": "天气"})
        expected = infer("--prompt-file", lines, "--max-new-tokens", 5)[1]
        assert infer("--max-new-tokens", 5, stdin="\n" + lines.read_text())[1] == expected
        assert records(expected)[0]["id"] == 7
        array = json.dumps(records(lines.read_text()), indent=1)
        assert infer("--max-new-tokens", 5, stdin=array)[1] == expected
        whole = infer("--max-new-tokens", 5, "--stream", stdin=lines.read_text())[1]
        assert whole == infer("--max-new-tokens", 5, stdin="你好\n天气\n")[1]
        code, out, err = infer(stdin='{"input": "a"}\n\nb\n')
        assert (code, out) == (2, "") and "this line is not JSON: Expecting value: b\n  at: /dev/stdin:3" in err

    @pytest.mark.parametrize("line", ["{x} is what?", '{"name": "x"}', '{"input": "cut', "[1, 2]", '"input"', "[]"])
    def test_through_a_pipe_are_text_whatever_else_they_begin_with(self, line: str, infer: Run) -> None:
        out = infer("--json", "--max-new-tokens", 2, stdin=f'{line}\n{{"input": "a"}}\n')[1]
        assert [record["input"] for record in records(out)] == [line, '{"input": "a"}']

    def test_are_read_from_standard_input_as_from_a_file(self, infer: Run, tmp_path: Path) -> None:
        options = ("--max-new-tokens", 5, "--prompt-file")
        array, text = tmp_path / "q.json", tmp_path / "q"
        array.write_text('[{"input": "你好"},\n {"messages": [{"role": "user", "content": "x"}]}]')
        text.write_text("你好\n天气\n")
        for file in (array, text):
            expected = infer(*options, file)[1]
            assert len(records(expected)) == 2
            assert infer(*options, "-", stdin=file.read_text())[1] == expected
            assert infer(*options, "/dev/stdin", stdin="\ufeff" + file.read_text())[1] == expected
        code, _, err = infer(*options, "-", stdin='[{"input": "a"},\n{"imput": "x"}]')
        assert code == 2 and "/dev/stdin:2\n  fix: rename 'imput' to \"input\"" in err

    def test_may_stand_in_a_json_array(self, tmp_path: Path) -> None:
        from spark13b.infer.prompts import read_prompts

        file = tmp_path / "q.json"
        file.write_text(json.dumps([{"input": "a"}, {"input": "b"}]))
        assert [prompt.text for prompt in read_prompts(file)] == ["a", "b"]

    def test_may_be_token_ids(self, infer: Run, tmp_path: Path) -> None:
        file = write_lines(tmp_path / "q.jsonl", {"input_ids": [300, 301, 302]})
        (record,) = records(infer("--prompt-file", file, "--max-new-tokens", 4)[1])
        assert record["input"] == [300, 301, 302]
        assert (record["prompt_tokens"], record["new_tokens"], record["finish_reason"]) == (3, 4, "length")

    def test_in_tokens_are_gone_on_from_with_the_space_between_words(self, infer: Run, tmp_path: Path) -> None:
        asked = [{"input_ids": [number, *end]} for number in range(300, 330) for end in ((), (8,))]  # 8: <Bot>
        file = write_lines(tmp_path / "q.jsonl", *asked)
        found = records(infer("--prompt-file", file, "--max-new-tokens", 3, "--logprobs", 0)[1])
        spaced = {len(one["input"]): one["predict"] for one in found if one["logprobs"][0]["token"].startswith("▁")}
        assert spaced[1].startswith(" ") and not spaced[2].startswith(" ")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"input": "cut', "q.jsonl:17"),
            ('{"input": ""}', 'the line has no text in "input"'),
            ('{"imput": "x"}', "rename 'imput' to \"input\""),
            ('{"input_ids": [1, 9000]}', "token id 9000 is outside the model's vocabulary of 8000"),
            ('{"input_ids": ["1"]}', '"input_ids" is not a list of token ids'),
            (json.dumps({"input": "天气" * 200}), "the context holds 128 with the answer"),
            (json.dumps({"messages": [{"role": "user", "content": "天气" * 200}]}), "the context holds 128"),
            ('{"messages": [{"role": "assistant", "content": "x"}]}', "begins and ends with what the user says"),
            ('{"messages": [{"role": "user", "content": null}]}', "message 1 has no"),
            ('{"input": "x", "history": [["a"]]}', '"history" is not a list of [question, answer]'),
            (r'{"input": "\ud800"}', "half a character"),
        ],
    )
    def test_that_cannot_be_answered_are_named_by_file_and_line_before_any_is_asked(
        self, line: str, message: str, infer: Run, tmp_path: Path
    ) -> None:
        file = write_lines(tmp_path / "q.jsonl", *[{"input": f"question {number}"} for number in range(16)])
        file.write_text(file.read_text() + line + "\n")
        code, out, err = infer("--prompt-file", file, "--output", tmp_path / "out.jsonl")
        assert (code, out) == (2, "")
        assert message in err
        assert "q.jsonl:17" in err
        assert "fix: " in err
        assert list(tmp_path.iterdir()) == [file]

    def test_from_windows_are_the_same_as_others(self, infer: Run) -> None:
        expected = infer("--json", "--max-new-tokens", 5, stdin="你好\n天气\n")[1]
        assert infer("--json", "--max-new-tokens", 5, stdin="\ufeff你好\r\n天气\r\n")[1] == expected

    def test_may_be_conversations_with_a_system_and_carry_other_fields(self, infer: Run, tmp_path: Path) -> None:
        chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "你好"}]
        lines = write_lines(
            tmp_path / "q.jsonl",
            {"messages": chat, "id": 7},
            {"prompt": "你好", "system": "s", "predict": "x", "label": [1, float("nan")]},
        )
        first, second = records(infer("--prompt-file", lines, "--max-new-tokens", 5)[1])
        assert (first["input"], first["id"], second["label"]) == (chat, 7, [1, None])
        assert first["predict"] == second["predict"] != "x"
        (third,) = records(infer("你好", "--system", "s", "--json", "--max-new-tokens", 5)[1])
        assert third["prompt_tokens"] == first["prompt_tokens"] == second["prompt_tokens"]
        assert third["predict"] == first["predict"]

    def test_may_have_a_history_as_training_examples_do(self, infer: Run, tmp_path: Path) -> None:
        turns = [("user", "a"), ("assistant", "b"), ("user", "你好")]
        chat = [{"role": role, "content": content} for role, content in turns]
        lines = write_lines(tmp_path / "q.jsonl", {"messages": chat}, {"instruction": "你好", "history": [["a", "b"]]})
        first, second = records(infer("--prompt-file", lines, "--max-new-tokens", 5)[1])
        assert first == second

    def test_that_are_not_utf8_are_refused_with_their_byte(self, model: Path) -> None:
        command = [sys.executable, "-m", "spark13b", "infer", "--load", str(model)]
        for arguments, given in (([b"a\xff"], b""), ([], b"a\xff\n")):
            result = subprocess.run([*command, *arguments], input=given, capture_output=True, env=ENVIRONMENT)
            assert result.returncode == 2
            assert b"byte 0xff is not UTF-8\n  at: prompt 1" in result.stderr

    def test_have_a_system_that_is_utf8(self, infer: Run) -> None:
        code, out, err = infer("x", "--system", "\udcff")
        assert (code, out) == (2, "") and "byte 0xff is not UTF-8\n  at: --system" in err

    def test_are_missed_when_there_are_none(self, infer: Run) -> None:
        code, _, err = infer(stdin="\n")
        assert code == 2 and "no prompt was given" in err
        code, _, err = infer("  ")
        assert code == 2 and "the prompt is empty" in err


class TestAnswers:
    def test_are_text_in_order_whether_streamed_or_not(self, infer: Run) -> None:
        questions = [f"question {number}" for number in range(5)]
        _, whole, err = infer(*questions, "--batch-size", 3)
        assert whole.count("> question") == 5
        assert infer(*questions, "--batch-size", 1, "--stream")[1] == whole
        assert "tokens/s" in err and "first token after" in err

    def test_are_drawn_when_a_temperature_is_given(self) -> None:
        from spark13b.cli.options import Drawing

        def drawn(**given: Any) -> Any:
            return Drawing(**given).options()["generation.do_sample"]

        assert drawn(temperature=0.7) and drawn(top_k=5) and drawn(top_p=0.9)
        assert drawn(temperature=0.0) is False
        assert drawn(seed=3) is None  # as the preset says

    def test_end_at_a_stop_text_and_repeat_with_the_seed(self, infer: Run) -> None:
        options = ("你好", "--json", "--max-new-tokens", 12, "--temperature", 1.5, "--seed", 1)
        whole = records(infer(*options)[1])[0]["predict"]
        stop = whole[8:10]
        (stopped,) = records(infer(*options, "--stop", stop, "--stop", "never")[1])
        assert stopped["predict"] == whole[: whole.index(stop)]
        assert stopped["finish_reason"] == "stop"

    def test_have_log_probabilities_and_beams_on_request(self, infer: Run) -> None:
        (told,) = records(infer("你好", "--json", "--max-new-tokens", 3, "--logprobs", 2)[1])
        assert [len(token["top"]) for token in told["logprobs"]] == [2, 2, 2]
        (best,) = records(infer("你好", "--json", "--max-new-tokens", 6, "--num-beams", 3)[1])
        scores = [best["score"], *(other["score"] for other in best["alternatives"])]
        assert len(scores) == 3 and scores == sorted(scores, reverse=True)

    def test_as_text_have_no_log_probabilities(self, infer: Run) -> None:
        code, out, err = infer("你好", "--logprobs", 2)
        assert (code, out) == (2, "") and "add --json" in err
        assert "leave --stream out" in infer("你好", "--logprobs", 2, "--stream")[2]

    def test_of_a_beam_search_have_no_alternatives_to_tokens(self, infer: Run) -> None:
        options = ("你好", "--json", "--num-beams", 2, "--max-new-tokens", 4)
        code, out, err = infer(*options, "--logprobs", 2)
        assert (code, out) == (2, "") and "--logprobs 0" in err
        (record,) = records(infer(*options, "--logprobs", 0)[1])
        assert all(token["logprob"] < 0 for token in record["logprobs"])

    def test_are_the_same_with_guessed_tokens(self, infer: Run) -> None:
        if find_library().library is None:
            pytest.skip("the native library is not built")
        for options in (("--json", "--logprobs", 1), ("--stream", "--repetition-penalty", 1.5)):
            asked = ("a b a b a b a b", "c d e c d e c d e", *options, "--max-new-tokens", 20)
            plain, guessed = infer(*asked), infer(*asked, "--draft-tokens", 8)
            assert (plain[0], plain[1]) == (guessed[0], guessed[1]) == (0, guessed[1])
        code, _, err = infer("a", "--draft-tokens", 2, "--num-beams", 2)
        assert code == 2 and "a beam search guesses no tokens" in err


class TestOutputFile:
    def test_has_a_line_for_each_prompt_in_order_and_is_not_overwritten(self, infer: Run, tmp_path: Path) -> None:
        file = write_lines(tmp_path / "q.jsonl", *[{"input": f"q {number}"} for number in range(20)])
        output = tmp_path / "out.jsonl"
        code, out, _ = infer("--prompt-file", file, "--output", output, "--max-new-tokens", 3)
        assert (code, out) == (0, "")
        assert [record["input"] for record in records(output.read_text())] == [f"q {number}" for number in range(20)]
        code, _, err = infer("--prompt-file", file, "--output", output)
        assert code == 2 and "the output already exists" in err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "q.jsonl"]
        code, out, _ = infer("x", "--output", output, "--max-new-tokens", 3, "--force", "--json")
        assert json.loads(out) == {"output": str(output), "answers": 1}

    def test_replaces_neither_a_folder_nor_the_prompts(self, infer: Run, tmp_path: Path) -> None:
        folder, lines = tmp_path / "folder", write_lines(tmp_path / "q.jsonl", {"input": "x"})
        folder.mkdir()
        (folder / "kept").touch()
        for output, says in ((folder, "the output is a folder"), (lines, "the output is one of the inputs")):
            code, _, err = infer("--prompt-file", lines, "--output", output, "--force")
            assert code == 2 and says in err
        assert (folder / "kept").exists() and records(lines.read_text()) == [{"input": "x"}]
        assert sorted(tmp_path.iterdir()) == [folder, lines]

    def test_is_no_dash(self, infer: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        code, _, err = infer("x", "--output", "-")
        assert code == 2 and "answers go to standard output" in err
        assert not list(tmp_path.iterdir())

    def test_of_other_prompts_is_not_gone_on_with(self, infer: Run, tmp_path: Path) -> None:
        from spark13b.infer.journal import Journal

        output = tmp_path / "out.jsonl"
        with Journal(output, "other", 2) as journal:
            journal.add(1, {"input": "b"})
        code, _, err = infer("q", "--output", output)
        assert code == 2
        assert "here are answers to other prompts, or with other options" in err
        assert "out.jsonl.partial" in err
        assert infer("q", "--output", output, "--force", "--max-new-tokens", 2)[0] == 0
        assert len(records(output.read_text())) == 1

    @pytest.mark.parametrize("place", ["", "checkpoints/step-00000001/rank_0"])
    def test_in_the_folder_of_the_weights_is_gone_on_with_as_anywhere(self, place: str, model: Path) -> None:
        from spark13b.infer.session import find_model

        load = model / "checkpoints/step-00000001/rank_0" if place else model
        journal = model / place / "answers.json.partial"

        def identity() -> str:
            return find_model(load, None, None, {}, ()).identity()

        before = identity()
        journal.write_text("{}\n")
        try:
            assert identity() == before
        finally:
            journal.unlink()
        weights = next(model.rglob("model.safetensors"))
        os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
        assert identity() != before  # other weights are still other weights


def test_a_prompt_that_cannot_be_answered_is_refused_before_weights_are_read(
    infer: Run, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr("spark13b.infer.loading.load_model", loaded)
    for ids, said in (([1] * 5000, "the context holds"), ([1, 999_999], "outside the model's vocabulary")):
        prompts = tmp_path / "q.jsonl"
        prompts.write_text(json.dumps({"input_ids": ids}))
        code, _, err = infer("--prompt-file", prompts, "--load", model)
        assert code == 2
        assert said in err


def test_a_checkpoint_is_opened_once_to_know_it_and_once_to_see_whether_it_fits_and_load_it(
    infer: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spark13b.ckpt import adapters

    opened, opens = [], adapters.open_checkpoint
    monkeypatch.setattr(adapters, "open_checkpoint", lambda path: opened.append(path) or opens(path))
    assert infer("x", "--max-new-tokens", 2)[0] == 0
    assert len(opened) == 2


@pytest.fixture(scope="module")
def two_hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(
        tmp_path_factory.mktemp("many") / "q.jsonl", *[{"input": f"question {number}"} for number in range(200)]
    )


def command(model: Path, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "spark13b", "infer", "--load", str(model), *map(str, arguments)]


# the command, which sends itself a signal when so many answers have been kept
DYING = """
import os, sys
from spark13b.cli.main import run
from spark13b.infer.journal import Journal

add, left = Journal.add, int(sys.argv[1])

def add_and_die(self, *answer):
    global left
    add(self, *answer)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), int(sys.argv[2]))

Journal.add = add_and_die
sys.exit(run(sys.argv[3:]))
"""


def test_killed_twice_in_a_file_of_200_and_run_again_every_prompt_is_answered_once_in_order(
    model: Path, two_hundred: Path, infer: Run, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    journal = tmp_path / "out.jsonl.partial"
    arguments = ("--prompt-file", two_hundred, "--output", output, "--max-new-tokens", 8)
    done = 0
    for sent in (signal.SIGKILL, signal.SIGINT):
        dying = [sys.executable, "-c", DYING, "12", str(sent.value), *command(model, *arguments)[3:]]
        process = subprocess.run(dying, env=ENVIRONMENT, capture_output=True, text=True)
        assert not output.exists()
        lines = journal.read_text().splitlines()
        assert len(lines) - 1 == done + 12
        if sent == signal.SIGINT:
            assert process.returncode == 1
            assert "the same command goes on from there" in process.stderr
        done = len(lines) - 1
    code, _, err = infer(*arguments)
    assert code == 0
    assert "answers of an earlier run are there" in err
    found = records(output.read_text())
    assert [record["input"] for record in found] == [f"question {number}" for number in range(200)]
    assert not journal.exists()
    whole = tmp_path / "whole.jsonl"
    infer("--prompt-file", two_hundred, "--output", whole, "--max-new-tokens", 8)
    assert whole.read_text() == output.read_text()


def test_with_ctrl_c_a_stream_ends_at_once_with_what_there_is(model: Path) -> None:
    process = subprocess.Popen(
        command(model, "你好", "--stream", "--set", "model.seq_length=100000", "--max-new-tokens", 90000),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        bufsize=0,
    )
    assert process.stdout is not None
    begun = process.stdout.read(40)
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=100)
    assert process.returncode == 1
    assert (begun + rest).decode().endswith("\n")
    assert "stopped before the end" in said.decode()


def test_a_checkpoint_of_another_shape_is_refused_before_anything_is_allocated(infer: Run) -> None:
    code, _, err = infer("x", "--set", "model.num_layers=40", "--set", "model.hidden_size=5120")
    assert code == 2
    assert "model.safetensors" in err
    assert "fix: " in err


def test_another_tokenizer_than_that_of_the_run_is_doubted(infer: Run, model: Path, tmp_path: Path) -> None:
    from spark13b.data.tokenizer import MODEL_FILE

    own = (model / "tokenizer" / MODEL_FILE).read_bytes()
    for name, content, doubted in (("same", own, False), ("other", own + b"\x12\x00", True)):  # empty trainer's spec
        (tmp_path / name).mkdir()
        (tmp_path / name / MODEL_FILE).write_bytes(content)
        code, _, err = infer("x", "--tokenizer", tmp_path / name, "--max-new-tokens", 2)
        assert code == 0 and ("note: the tokenizer is not the one of" in err) == doubted


def test_a_path_that_does_not_exist_is_named(model: Path, tmp_path: Path) -> None:
    from spark13b.errors import InputError
    from spark13b.run_folder import preset_for

    with pytest.raises(InputError, match="there is no such checkpoint") as caught:
        preset_for(None, tmp_path / "no", None)
    assert caught.value.where == str(tmp_path / "no")
    with pytest.raises(InputError, match="there is no such checkpoint") as caught:
        preset_for(None, model, tmp_path / "adapter")
    assert "--adapter" in str(caught.value.fix)


def test_two_processes_that_share_the_model_answer_as_one_does_through_pipes(model: Path, infer: Run) -> None:
    options = ("--json", "--max-new-tokens", 24)
    shared = subprocess.run(
        command(model, *options, "--nproc", 2), input="你好\n天气\n", capture_output=True, text=True, env=ENVIRONMENT
    )
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout == infer(*options, stdin="你好\n天气\n")[1]
    assert "tokens/s" in shared.stderr
