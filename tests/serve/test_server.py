"""The server as its clients see it: a real process, the real `openai` client, and requests of any shape."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from infer.small_run import write_small_run
from serve.running import Server, serving
from spark13b.cli.main import run as main

KEY = "sk-of-the-tests"
SEATS, QUEUE = 4, 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    run = write_small_run(folder / "run")
    options = ("--seats", SEATS, "--queue", QUEUE, "--model-name", "small")
    with serving(run, folder / "log", *options, SPARK13B_API_KEY=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def ask(client: openai.OpenAI, question: str, **options: Any) -> Any:
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(model="small", messages=messages, **options)  # type: ignore[arg-type]


def metric(server: Server, name: str) -> float:
    text = requests.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {KEY}"}, timeout=100).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


def wait_until_idle(server: Server) -> None:
    until = time.monotonic() + 100
    while metric(server, "spark13b_open") or metric(server, "spark13b_running"):
        assert time.monotonic() < until
        time.sleep(0.05)


class TestChat:
    def test_an_answer_has_text_usage_and_a_reason(self, client: openai.OpenAI) -> None:
        answer = ask(client, "你好", max_tokens=8)
        assert answer.object == "chat.completion"
        assert answer.model == "small"
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 8
        assert answer.usage.total_tokens == 8 + answer.usage.prompt_tokens

    def test_what_was_said_before_is_not_read_again(self, client: openai.OpenAI, server: str) -> None:
        before = metric(server, "spark13b_reused_prompt_tokens_total")
        turns = [{"role": "user", "content": "一二三四五六七八九十，这是一个很长的问题，要有许多词元"}]
        usages = []
        for _ in range(2):
            answer = client.chat.completions.create(model="small", messages=turns, max_tokens=6)  # type: ignore[arg-type]
            turns += [{"role": "assistant", "content": answer.choices[0].message.content}]  # type: ignore[list-item]
            turns += [{"role": "user", "content": "然后呢"}]
            usages.append(answer.usage)
        first, second = usages
        assert first.prompt_tokens_details.cached_tokens == 0
        assert first.prompt_tokens <= second.prompt_tokens_details.cached_tokens < second.prompt_tokens
        told = metric(server, "spark13b_reused_prompt_tokens_total") - before
        assert told == second.prompt_tokens_details.cached_tokens

    def test_the_choices_of_a_request_share_its_reading(self, client: openai.OpenAI, server: str) -> None:
        before = metric(server, "spark13b_reused_prompt_tokens_total")
        ids = list(range(300, 340))
        answer = client.completions.create(model="small", prompt=ids, max_tokens=4, n=3)  # type: ignore[arg-type]
        assert len(answer.choices) == 3
        assert metric(server, "spark13b_reused_prompt_tokens_total") - before == 2 * 39

    def test_a_stream_says_the_same_piece_by_piece_and_the_usage_at_the_end(self, client: openai.OpenAI) -> None:
        whole = ask(client, "天气", max_tokens=12)
        chunks = list(ask(client, "天气", max_tokens=12, stream=True, stream_options={"include_usage": True}))
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(pieces) == whole.choices[0].message.content
        assert sum(map(bool, pieces)) > 5
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
        assert chunks[-1].usage == whole.usage

    def test_earlier_turns_matter_and_a_system_message_too(self, client: openai.OpenAI) -> None:
        def said(*messages: tuple[str, str]) -> str:
            turns = [{"role": role, "content": text} for role, text in messages]
            answer = client.chat.completions.create(model="small", messages=turns, max_tokens=8)  # type: ignore[arg-type]
            return answer.choices[0].message.content or ""

        alone = said(("user", "b"))
        assert said(("user", "a"), ("assistant", "c"), ("user", "b")) != alone
        assert said(("system", "be short"), ("user", "b")) != alone

    def test_a_stop_text_ends_the_answer_before_it(self, client: openai.OpenAI) -> None:
        text = ask(client, "你好", max_tokens=16).choices[0].message.content
        stop = text[len(text) // 2 : len(text) // 2 + 2]
        answer = ask(client, "你好", max_tokens=16, stop=stop)
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].message.content == text[: text.index(stop)]

    def test_several_choices_are_drawn_with_seeds_of_their_own_and_repeat(self, client: openai.OpenAI) -> None:
        options = {"n": 3, "temperature": 1.5, "seed": 7, "max_tokens": 8}
        first, second = (ask(client, "你好", **options) for _ in range(2))
        texts = [choice.message.content for choice in first.choices]
        assert texts == [choice.message.content for choice in second.choices]
        assert len(set(texts)) == 3
        streamed: dict[int, str] = {0: "", 1: "", 2: ""}
        for chunk in ask(client, "你好", stream=True, **options):
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
        assert list(streamed.values()) == texts

    def test_log_probabilities_come_with_each_token(self, client: openai.OpenAI) -> None:
        told = ask(client, "你好", max_tokens=5, logprobs=True, top_logprobs=3).choices[0].logprobs.content
        assert len(told) == 5
        for token in told:
            assert len(token.top_logprobs) == 3
            assert token.logprob == token.top_logprobs[0].logprob  # greedy
            assert token.logprob <= 0

    def test_without_a_seed_each_request_draws_another_answer(self, client: openai.OpenAI) -> None:
        texts = {ask(client, "x", temperature=1.5, max_tokens=8).choices[0].message.content for _ in range(3)}
        assert len(texts) == 3


class TestCompletions:
    def test_text_goes_on_from_each_prompt_and_echo_repeats_it(self, client: openai.OpenAI) -> None:
        plain = client.completions.create(model="small", prompt=["天气", "hello"], max_tokens=6, logprobs=2)
        assert len(plain.choices) == 2
        assert len(plain.choices[0].logprobs.tokens) == 6  # type: ignore[union-attr, arg-type]
        echoed = client.completions.create(model="small", prompt="天气", max_tokens=6, echo=True, logprobs=0)
        assert echoed.choices[0].text == "天气" + plain.choices[0].text
        places = plain.choices[0].logprobs.text_offset  # type: ignore[union-attr]
        assert echoed.choices[0].logprobs.text_offset == [place + 2 for place in places]  # type: ignore[union-attr]

    def test_text_goes_on_with_the_space_between_words_unless_the_prompt_ends_in_one(
        self, client: openai.OpenAI
    ) -> None:
        def texts(end: str) -> list[tuple[str, str]]:
            prompts = [f"word{number}{end}" for number in range(12)]
            told = client.completions.create(model="small", prompt=prompts, max_tokens=3, logprobs=0, echo=True).choices
            offsets = [choice.logprobs.text_offset for choice in told]  # type: ignore[union-attr]
            assert [place[0] for place in offsets] == [*map(len, prompts)]  # type: ignore[index, arg-type]
            return [(one.logprobs.tokens[0], one.text[len(asked) :]) for one, asked in zip(told, prompts, strict=True)]  # type: ignore[union-attr, index]

        begun = [(token, text) for token, text in texts("") if token.startswith(" ")]
        assert begun and all(text.startswith(token) for token, text in begun)
        for end in (" ", "<end><Bot> "):
            begun = [(token, text) for token, text in texts(end) if token.startswith(" ")]
            assert begun and all(text.startswith(token[1:]) for token, text in begun)

    def test_each_token_tells_where_it_begins_in_the_text_whole_and_streamed(self, client: openai.OpenAI) -> None:
        options: dict[str, Any] = {"model": "small", "prompt": "x", "max_tokens": 12, "logprobs": 0}
        choice = client.completions.create(**options).choices[0]
        told = choice.logprobs
        assert len(told.tokens) == len(told.text_offset) == 12
        assert told.text_offset[0] == 0
        for token, place, after in zip(told.tokens, told.text_offset, told.text_offset[1:], strict=False):
            if not token.startswith("<"):  # bytes, the first of which may come to nothing
                assert choice.text[place:after].endswith(token.lstrip())
        streamed = [one.choices[0].logprobs for one in client.completions.create(stream=True, **options)]
        assert [place for part in streamed if part for place in part.text_offset] == told.text_offset

    def test_a_prompt_may_be_token_ids(self, client: openai.OpenAI) -> None:
        assert client.completions.create(model="small", prompt=[300, 301, 302], max_tokens=4).usage.prompt_tokens == 3  # type: ignore[union-attr]
        with pytest.raises(openai.BadRequestError, match="token id 8000 is outside"):
            client.completions.create(model="small", prompt=[300, 8000], max_tokens=4)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"extra_body": {"temprature": 1}}, "unknown field 'temprature'; did you mean 'temperature'"),
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "this server has no tools"),
            ({"response_format": {"type": "json_object"}}, "this server has no response_format"),
            ({"max_tokens": 0}, "greater than or equal to 1"),
            ({"n": 17}, "less than or equal to 16"),
        ],
    )
    def test_what_cannot_be_done_is_refused_by_name(
        self, options: dict[str, Any], message: str, client: openai.OpenAI
    ) -> None:
        with pytest.raises(openai.BadRequestError, match=message):
            ask(client, "x", **options)

    @pytest.mark.parametrize(
        ("options", "param"),
        [
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
            ({"presence_penalty": 1}, "presence_penalty"),
            ({"temperature": -1}, "temperature"),
            ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        ],
    )
    def test_an_error_names_the_field(self, options: dict[str, Any], param: str, client: openai.OpenAI) -> None:
        asked = {"model": "small", "messages": [{"role": "user", "content": "x"}], **options}
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**asked)
        assert caught.value.param == param
        assert caught.value.type == "invalid_request_error"

    def test_fields_that_ask_for_nothing_are_taken(self, client: openai.OpenAI) -> None:
        nothing = {"user": "me", "store": False, "presence_penalty": 0, "response_format": {"type": "text"}}
        said = ask(client, "x", max_tokens=2, **nothing).choices[0].message.model_dump()  # null fields, too
        turns: list[Any] = [{"role": "user", "content": "x"}, said, {"role": "user", "content": "y"}]
        assert client.chat.completions.create(model="small", messages=turns, max_tokens=2).choices[0].message.content

    def test_unknown_routes_and_methods_have_the_same_shape(self, server: Server) -> None:
        headers = {"authorization": f"Bearer {KEY}"}
        for path, status in (("/v2", 404), ("/v1/chat/completions", 405)):
            answer = requests.get(server.url + path, headers=headers, timeout=100)
            assert answer.status_code == status
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    def test_health_may_be_asked_for_without_a_body(self, server: Server) -> None:
        answer = requests.head(f"{server.url}/health", timeout=100)
        assert (answer.status_code, answer.content) == (200, b"")

    def test_a_conversation_longer_than_the_context_is_refused(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="the context holds 128") as caught:
            ask(client, "天气" * 200)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")

    def test_another_models_name_is_404(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="no model 'gpt-4' here, only 'small'"):
            client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "x"}])
        assert [model.id for model in client.models.list()] == ["small"]
        assert client.models.retrieve("small").id == "small"

    def test_a_wrong_key_is_401_and_appears_in_no_log(self, server: Server) -> None:
        with pytest.raises(openai.AuthenticationError):
            ask(openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-wrong"), "a secret question")
        assert requests.get(f"{server.url}/v1/models", timeout=100).status_code == 401
        assert requests.get(f"{server.url}/health", timeout=100).json() == {"status": "ok"}
        log = server.log.read_text()
        assert '"POST /v1/chat/completions" 401' in log
        assert "sk-" not in log and "secret" not in log

    def test_a_body_of_5_mib_is_413_and_a_broken_one_400(self, server: Server) -> None:
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        url = f"{server.url}/v1/chat/completions"
        assert requests.post(url, data=b" " * (5 << 20), headers=headers, timeout=100).status_code == 413
        chunked = requests.post(url, data=iter([b" " * (5 << 20)]), headers=headers, timeout=100)
        assert chunked.status_code == 413
        broken = requests.post(url, data=b'{"messages": [', headers=headers, timeout=100)
        assert broken.status_code == 400
        assert "the body is not JSON" in broken.json()["error"]["message"]

    @pytest.mark.parametrize(
        ("path", "kind", "body", "says"),
        [
            ("/v1/chat/completions", "text/plain", b"{}", "its content-type is text/plain: send 'application/json'"),
            ("/v1/chat/completions", "application/json", b'{"messages":[{"content":"\xff"}]}', "is not UTF-8"),
            (
                "/v1/chat/completions",
                "application/json",
                rb'{"messages":[{"role":"user","content":"\ud800"}]}',
                r"the text holds half a character: \ud800 without its other half",
            ),
            ("/v1/completions", "application/json", rb'{"prompt":"\ud800"}', "the text holds half a character"),
            ("/chat/completions", "application/json", b"{}", "no /chat/completions here; the API is under /v1"),
        ],
    )
    def test_what_newcomers_send_is_told_how_to_mend(
        self, path: str, kind: str, body: bytes, says: str, server: Server
    ) -> None:
        headers = {"authorization": f"Bearer {KEY}", "content-type": kind}
        error = requests.post(server.url + path, data=body, headers=headers, timeout=100).json()["error"]
        assert says in error["message"]
        assert error["param"] in (None, "messages", "prompt")

    def test_pages_of_other_origins_get_no_leave(self, server: Server) -> None:
        answer = requests.get(f"{server.url}/health", headers={"origin": "https://example.org"}, timeout=100)
        assert "access-control-allow-origin" not in answer.headers


def test_32_clients_at_once_get_their_answers_and_those_that_leave_free_their_seats(
    server: Server, client: openai.OpenAI
) -> None:
    questions = [f"question {number}" for number in range(8)]
    alone = {question: ask(client, question, max_tokens=16).choices[0].message.content for question in questions}

    def one(number: int) -> tuple[str, str | None]:
        question = questions[number % 8]
        if number % 4 == 3:  # leaves in the middle of its stream
            with ask(client, question, max_tokens=100, stream=True) as stream:
                for _ in zip(range(3), stream, strict=False):
                    pass
            return question, None
        if number % 4 == 2:
            chunks = ask(client, question, max_tokens=16, stream=True)
            return question, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return question, ask(client, question, max_tokens=16).choices[0].message.content

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(one, range(32)))
    assert [text for _, text in answers if text is None] == [None] * 8
    assert all(text in (None, alone[question]) for question, text in answers)
    wait_until_idle(server)
    assert metric(server, "spark13b_waiting") == 0
    assert ask(client, questions[0], max_tokens=16).choices[0].message.content == alone[questions[0]]


def test_memory_stays_flat_over_many_requests(server: Server) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}

    def growth(count: int) -> float:
        def one(number: int) -> None:
            answer = session.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=100)
            assert answer.status_code == 200

        before = server.memory()
        with requests.Session() as session, ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(count)))
        return server.memory() - before

    # MiB; a leak of 16 KiB a request would show in every round, an allocator that takes more for once in few of them
    assert any(growth(200) < 3 for _ in range(6))


def test_no_request_of_any_shape_is_answered_with_5xx(server: Server) -> None:
    """Bodies made from the server's own OpenAPI description, right and wrong ones; every status is a documented one."""
    headers = {"authorization": f"Bearer {KEY}"}
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=headers)
    checks = [not_a_server_error, status_code_conformance, content_type_conformance]
    seen: set[tuple[str, int]] = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                if isinstance(case.body, dict) and {"messages", "prompt"} & case.body.keys():
                    case.body = case.body | {"max_tokens": 2, "n": 1}  # long answers are not what is tested
                response = case.call(headers=headers, timeout=100)
                seen.add((case.operation.path, response.status_code))
                case.validate_response(response, checks=checks, headers=headers)

            with contextlib.suppress(Unsatisfiable):  # a route without parameters has no wrong ones
                check()
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert (path, 400) in seen
    wait_until_idle(server)


def test_a_port_that_is_taken_is_named_before_the_model_is_loaded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("spark13b.infer.session.Session", loaded)
    port = server.url.rpartition(":")[2]
    assert main(["serve", "--load", str(write_small_run(tmp_path / "run")), "--port", port]) == 2
    said = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in said
    assert "choose another --port" in said


def test_zz_a_server_that_is_stopped_finishes_the_running_answer(server: Server, client: openai.OpenAI) -> None:
    """The last test of the module: the server ends with it."""
    stream = ask(client, "你好", max_tokens=100, stream=True)
    first = next(iter(stream))
    assert first.choices
    server.process.send_signal(signal.SIGTERM)
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert server.process.wait(100) == 0
    assert "stopped; " in server.log.read_text()
    assert json.dumps(KEY) not in server.log.read_text()
