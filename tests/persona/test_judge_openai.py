"""A model as judge, over real sockets: a server that speaks OpenAI's chat API and fails as servers do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from spark13b.data.place import Place
from spark13b.errors import InputError, JobError
from spark13b.persona import judge_openai
from spark13b.persona.evaluation import evaluate
from spark13b.persona.judge_openai import OpenAIJudge, verdict_of
from spark13b.persona.kinds import target_of
from spark13b.persona.predictions import Answer

PERSONA = {"姓名": "小雅", "年龄": "20岁"}


class Server(ThreadingHTTPServer):
    """Answers 符合 unless `replies` says otherwise: texts, statuses, or "drop" for a connection that breaks."""

    replies: list[Any]
    seen: list[tuple[dict[str, str], dict[str, Any]]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((dict(self.headers) | {"path": self.path}, body))
        reply = self.server.replies.pop(0) if self.server.replies else "符合\n与设定一致。"
        if reply == "drop":
            self.connection.close()
            return
        status = reply if isinstance(reply, int) else 200
        value = {"error": {"message": "no\nsuch"}} if isinstance(reply, int) else reply
        if isinstance(reply, str):
            value = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(judge_openai, "_FIRST_PAUSE", 0.01)
    with Server(("127.0.0.1", 0), Handler) as running:
        running.replies, running.seen = [], []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def answer(question: str = "你几岁？", text: str = "20{}岁") -> Answer:
    return Answer(question, text, target_of(question, PERSONA), None, Place(Path("p.jsonl"), 1))


def test_the_model_sees_persona_question_and_answer_and_the_key_is_in_the_header_alone(server):
    with OpenAIJudge(PERSONA, server.url + "/", "judge", "secret-key") as judge:
        verdict = judge(answer())
    assert (verdict.in_persona, verdict.reason) == (True, "与设定一致。")
    headers, body = server.seen[0]
    assert headers["path"] == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret-key"
    assert (body["model"], body["temperature"]) == ("judge", 0)
    prompt = body["messages"][0]["content"]
    assert all(words in prompt for words in ("姓名：小雅", "年龄：20岁", "问题：你几岁？", "回答：20{}岁"))
    assert "secret-key" not in json.dumps(body)


def test_busy_servers_and_broken_connections_are_asked_again(server):
    server.replies = [429, 503, "drop", "跳出\n说成了三十岁"]
    with OpenAIJudge(PERSONA, server.url, "judge", None) as judge:
        verdict = judge(answer())
    assert (verdict.in_persona, verdict.reason) == (False, "说成了三十岁")
    assert len(server.seen) == 4
    assert "Authorization" not in server.seen[0][0]


def test_a_server_that_stays_busy_is_left_after_five_tries(server):
    server.replies = [500] * 9
    with OpenAIJudge(PERSONA, server.url, "judge", None) as judge, pytest.raises(JobError, match=r"500.*5 tries"):
        judge(answer())
    assert len(server.seen) == 5


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_stops_everything_at_once_and_shows_no_key(status, server):
    server.replies = [status] * 50
    answers = [answer() for _ in range(50)]
    with OpenAIJudge(PERSONA, server.url, "judge", "secret-key") as judge, pytest.raises(JobError) as caught:
        evaluate(answers, judge, "openai", at_once=2)
    assert f"status {status}: no such" in caught.value.message()
    assert "secret-key" not in caught.value.message()
    assert len(server.seen) < 10


@pytest.mark.parametrize("reply", [{}, {"choices": []}, [], {"choices": [{"message": {"content": None}}]}])
def test_a_reply_of_another_form_is_an_error(reply, server):
    server.replies = [reply]
    with OpenAIJudge(PERSONA, server.url, "judge", None) as judge, pytest.raises(JobError, match="chat API"):
        judge(answer())


def test_a_server_that_is_not_there_is_an_error(server):
    address = server.url.replace(str(server.server_address[1]), "1")
    with OpenAIJudge(PERSONA, address, "judge", None) as judge, pytest.raises(JobError, match="cannot be reached"):
        judge(answer())


def test_an_address_without_a_scheme_is_refused():
    with pytest.raises(InputError, match="no address"):
        OpenAIJudge(PERSONA, "localhost:8000", "judge", None)


@pytest.mark.parametrize(
    ("reply", "inside"),
    [
        *(("符合", True), ("跳出", False), ("**跳出**：年龄不对", False), ("不符合。", False), ("没有跳出", True)),
        *(("判断：符合人设", True), ("我不确定", None), ("", None), ("未跳出人设", True)),
    ],
)
def test_verdicts_are_read_from_what_models_write(reply, inside):
    assert verdict_of(reply).in_persona is inside
    assert verdict_of(reply).reason
