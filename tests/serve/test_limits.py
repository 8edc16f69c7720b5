"""What bounds an answer and who may ask: time limits, the end of the server, addresses, origins."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from serve.in_process import EndlessEngine, Session, served, stop, wait_until
from spark13b.errors import JobError
from spark13b.serve.app import Settings, make_app
from spark13b.serve.desk import Desk
from spark13b.serve.server import listen, run

ASKED = {"messages": [{"role": "user", "content": "x"}]}
PAGES = "https://pages.example"


def ask(url: str, **more: object) -> requests.Response:
    return requests.post(f"{url}/v1/chat/completions", json=ASKED | more, timeout=100)


@contextlib.contextmanager
def streaming(url: str, **more: object) -> Iterator[Iterator[bytes]]:
    """The lines of a stream that has begun."""
    body = ASKED | {"stream": True} | more
    with requests.post(f"{url}/v1/chat/completions", json=body, timeout=100, stream=True) as answer:
        lines = answer.iter_lines()
        next(lines)
        yield lines


def test_an_answer_that_takes_longer_than_the_timeout_is_504_and_in_a_stream_an_error_event_and_counted() -> None:
    engine = EndlessEngine()

    def client(url: str) -> None:
        whole = ask(url)
        assert whole.status_code == 504
        assert whole.json()["error"]["type"] == "timeout_error"
        assert whole.json()["error"]["message"] == "the answer took more than 0.2 s"
        stream = ask(url, stream=True)
        assert stream.status_code == 200
        *_, last = filter(None, stream.text.split("\n"))
        assert '"timeout_error"' in last
        assert "[DONE]" not in stream.text
        told: dict[str, str] = {}

        def counted() -> bool:  # the engine's thread does it, after the answer
            text = requests.get(f"{url}/metrics", timeout=100).text
            told.update(re.findall(r"^(spark13b_\S+) (\S+)$", text, re.MULTILINE))
            return float(told.get('spark13b_answers_total{reason="cancelled"}', 0)) == 2

        wait_until(counted)
        numbers = {name: float(value) for name, value in told.items()}
        made = [len(one.tokens) for one in engine.generations]
        assert numbers["spark13b_generated_tokens_total"] == sum(made)
        read = sum(len(one.request.prompt) for one in engine.generations)
        assert numbers["spark13b_prompt_tokens_total"] == read

    served(client, engine, Settings(timeout=0.2))


def test_answers_that_grow_on_when_the_grace_is_over_are_told_that_the_server_is_stopped() -> None:
    def client(url: str) -> None:
        with streaming(url) as lines:
            stop()
            *_, last = filter(None, lines)
            assert b"the server is being stopped" in last

    assert served(client, EndlessEngine(), grace=0.5) >= 0.5


def test_a_second_signal_waits_for_no_answer() -> None:
    def client(url: str) -> None:
        with streaming(url) as lines:
            stop()
            with pytest.raises(requests.ConnectionError):  # nobody new is let in
                while True:
                    requests.get(f"{url}/health", timeout=100)
            stop()
            *_, last = filter(None, lines)
            assert b"the server is being stopped" in last

    grace = 200  # longer than any wait of the client
    assert served(client, EndlessEngine(), grace=grace) < grace


def test_a_whole_answer_that_the_end_of_the_server_cuts_is_503() -> None:
    def client(url: str) -> None:
        answer = ask(url)
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "the server is being stopped"

    engine = EndlessEngine()
    step = engine.step

    def stop_soon() -> list[object]:
        if len(engine.generations[0].tokens) == 3:
            stop()
        return step()  # type: ignore[return-value]

    engine.step = stop_soon  # type: ignore[method-assign, assignment]
    served(client, engine)


def test_a_client_that_leaves_while_it_waits_for_a_whole_answer_frees_its_seat() -> None:
    engine, lines = EndlessEngine(), list[str]()

    def client(url: str) -> None:
        leaving = http.client.HTTPConnection(url.removeprefix("http://"))
        body = json.dumps(ASKED | {"n": 3})
        leaving.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        wait_until(lambda: len(engine.generations) == 3)
        leaving.close()
        wait_until(lambda: not engine.busy)
        assert [one.finish_reason for one in engine.generations] == ["cancelled"] * 3
        wait_until(lambda: any('"POST /v1/chat/completions" 499' in line for line in lines))

    served(client, engine, Settings(log=lines.append))


def test_more_requests_than_the_queue_holds_are_told_to_come_again() -> None:
    """A request of n choices takes n places, of which there are four."""
    engine = EndlessEngine()

    def client(url: str) -> None:
        with streaming(url, n=3):
            refused = ask(url, n=2)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            with streaming(url):  # the fourth place
                assert ask(url).status_code == 429
        wait_until(lambda: not engine.busy)
        with streaming(url, n=2):
            pass
        assert len(engine.generations) == 6

    served(client, engine)


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as one:
        one.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_address_is_served_and_shown_in_brackets() -> None:
    def client(url: str) -> None:
        assert url.startswith("http://[::1]:")
        assert requests.get(f"{url}/health", timeout=100).json() == {"status": "ok"}

    served(client, EndlessEngine(), host="::1")


def test_pages_of_an_allowed_origin_may_ask_with_a_key_and_read_refusals_and_others_may_not() -> None:
    def client(url: str) -> None:
        preflight = {
            "origin": PAGES,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        leave = requests.options(f"{url}/v1/chat/completions", headers=preflight, timeout=100)
        assert leave.status_code == 200
        assert leave.headers["access-control-allow-origin"] == PAGES
        assert "POST" in leave.headers["access-control-allow-methods"]
        assert {"authorization", "content-type"} <= set(
            leave.headers["access-control-allow-headers"].lower().split(", ")
        )
        key = {"authorization": "Bearer sk-1"}
        for headers, status in ((key, 200), ({}, 401)):
            answer = requests.get(f"{url}/v1/models", headers=headers | {"origin": PAGES}, timeout=100)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == PAGES
        other = preflight | {"origin": "https://elsewhere.example"}
        refused = requests.options(f"{url}/v1/chat/completions", headers=other, timeout=100)
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers

    served(client, EndlessEngine(), Settings(keys=("sk-1",), cors_origins=(PAGES,)))


def test_a_web_server_that_does_not_begin_is_an_error_and_nobody_is_told_that_it_listens() -> None:
    told = []
    desk = Desk(EndlessEngine(), 4)  # type: ignore[arg-type]
    where = listen("127.0.0.1", 0)
    where.close()
    with pytest.raises(JobError, match="the web server did not begin: "):
        run(make_app(Session(), desk, Settings()), desk, where, 1.0, lambda: told.append(True))  # type: ignore[arg-type]
    assert told == []


def test_a_file_of_keys_from_windows_holds_the_same_keys(tmp_path: Path) -> None:
    from spark13b.cli.serve import _keys

    file = tmp_path / "keys.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")
    file.chmod(0o600)
    assert _keys([], file) == ["one", "two"]
