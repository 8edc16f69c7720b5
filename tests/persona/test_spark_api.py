"""The Spark web API, against a real WebSocket server that checks signatures and plays faults."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
import subprocess
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from persona.spark_server import APP_ID, KEY, SECRET, Plan, SparkServer, running
from spark13b.errors import InputError
from spark13b.persona.credentials import SparkCredentials
from spark13b.persona.spark_api import SparkApi, signature, signed_url
from spark13b.persona.teacher import Drawing, NoAnswer, StopAsking, TeacherError, TryAgain

CREDENTIALS = SparkCredentials(APP_ID, KEY, SECRET)


def pieces(teacher: SparkApi, question: str = "你叫什么名字？") -> list[str]:
    async def collect() -> list[str]:
        async with aclosing(teacher.ask([{"role": "user", "content": question}])) as answer:
            return [piece async for piece in answer]

    return asyncio.run(collect())


def teacher(server: SparkServer, **options: Any) -> SparkApi:
    options = {"credentials": CREDENTIALS, "model": "generalv3.5", "drawing": Drawing(), "timeout": 100} | options
    return SparkApi(address=server.url, **options)


def failure(plan: Plan, **options: Any) -> TeacherError:
    with running(plan) as server, pytest.raises(TeacherError) as raised:
        pieces(teacher(server, **options))
    return raised.value


def test_the_signature_of_the_vendors_documentation_comes_out_equal() -> None:
    date, secret = "Fri, 05 May 2023 10:43:39 GMT", "MjlmNzkzNmZkMDQ2OTc0ZDdmNGE2ZTZi"
    assert signature("spark-api.xf-yun.com", date, "/v1.1/chat", secret) == (
        "z5gHdu3pxVV4ADMyk467wOWDQ9q6BQzR3nfMTjc/DaQ="
    )


def test_the_url_names_host_date_and_authorization_and_never_the_secret() -> None:
    url = signed_url("wss://spark-api.xf-yun.com/v1.1/chat", "Fri, 05 May 2023 10:43:39 GMT", CREDENTIALS)
    assert url.startswith("wss://spark-api.xf-yun.com/v1.1/chat?authorization=YXBpX2tleT0i")
    assert url.endswith("&date=Fri%2C+05+May+2023+10%3A43%3A39+GMT&host=spark-api.xf-yun.com")
    assert SECRET not in url


def test_an_answer_comes_in_the_pieces_of_its_frames() -> None:
    with running() as server:
        assert pieces(teacher(server)) == ["答:你叫什", "么名字？"]
        assert pieces(teacher(server, model="lite"), "一" * 20) == ["答:" + "一" * 3, "一" * 4, "一" * 13]
    assert server.wrong == []
    assert server.requests[0]["payload"]["message"]["text"] == [{"role": "user", "content": "你叫什么名字？"}]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *((code, TryAgain) for code in (*range(10006, 10013), 10110, 10222, 11202, 11203, 10001)),
        *((code, StopAsking) for code in (10003, 10004, 10005, 10015, 10016, 10163, 11200, 11201)),
        *((code, NoAnswer) for code in (10013, 10014, 10019, 10021, 10907)),
    ],
)
def test_codes_say_whether_to_ask_again_to_stop_or_to_leave_the_line(code: int, kind: type[TeacherError]) -> None:
    error = failure(lambda question, time: code)
    assert (type(error), error.code, str(error)) == (kind, code, f"no (code {code})")


def test_a_connection_that_drops_in_the_middle_of_an_answer_is_worth_another_try() -> None:
    assert str(failure(lambda question, time: "drop")) == "the connection failed: ConnectionClosedError"


def test_silence_is_worth_another_try() -> None:
    error = failure(lambda question, time: "hang", timeout=0.5)
    assert (type(error), str(error)) == (TryAgain, "silence for 0.5 s")


def test_a_port_where_nobody_listens_is_worth_another_try() -> None:
    with running() as server:
        pass
    with pytest.raises(TryAgain, match="ConnectionRefusedError"):
        pieces(teacher(server))


def test_an_answer_cut_off_at_the_limit_of_tokens_is_none() -> None:
    assert str(failure(lambda question, time: "answer", drawing=Drawing(max_tokens=7))) == (
        "the answer was cut off at 7 tokens"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"credentials": SparkCredentials(APP_ID, KEY, "wrong")},
        {"credentials": SparkCredentials(APP_ID, "wrong", SECRET)},
        {"date": lambda: "Fri, 05 May 2023 10:43:39 GMT"},
    ],
    ids=["secret", "key", "clock"],
)
def test_a_refused_signature_stops_everything_and_says_what_to_check(options: dict[str, Any]) -> None:
    error = failure(lambda question, time: "answer", **options)
    assert isinstance(error, StopAsking)
    assert str(error) == "the server refuses the connection with status 401"
    assert "SPARK_API_SECRET" in error.fix and "clock" in error.fix


def test_keys_are_in_no_log_and_no_repr(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running() as server:
        asked = teacher(server)
        pieces(asked)
    assert caplog.records  # asyncio's
    shown = caplog.text + repr(CREDENTIALS) + repr(vars(asked))
    for secret in (APP_ID, KEY, SECRET, "authorization"):
        assert secret not in shown


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("ws://spark-api.example.com", "not encrypted"),
        ("wss://user@host", "no address"),
        ("wss://host/v9", "no address"),
    ],
)
def test_addresses_that_would_show_the_signature_or_are_none_are_refused(address: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        SparkApi(CREDENTIALS, "lite", Drawing(), address=address)


def test_a_model_that_the_api_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match="has no model 'gpt'"):
        SparkApi(CREDENTIALS, "gpt", Drawing())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1 that nobody has signed, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    make = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=here"]
    make += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", str(path)]
    subprocess.run([*make, *names], check=True, capture_output=True)
    return path


def test_the_servers_certificate_is_checked(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with running(tls=tls) as server:
        with pytest.raises(StopAsking, match="certificate is not trusted"):
            pieces(teacher(server))
        assert server.asked.total() == 0
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert "".join(pieces(teacher(server))) == "答:你叫什么名字？"
