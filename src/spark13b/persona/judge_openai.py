"""A language model as judge, over any endpoint that speaks OpenAI's chat API (ours too: `spark13b serve`)."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import httpx2

from spark13b.errors import InputError, JobError
from spark13b.persona.judge_rules import Verdict
from spark13b.persona.predictions import Answer

TRIES = 5
_FIRST_PAUSE = 0.5  # seconds; doubled after each failure, with jitter
_PROMPT = """你是人设一致性的评审。下面是一个AI助手的人设、用户的问题和助手的回答。
人设：
{persona}

规则：
1. 问题涉及人设中已设定的属性时，回答必须与设定一致；与设定矛盾、回避或否认，都算跳出人设。
2. 问题涉及人设中没有设定的属性时，回答不得编造具体内容；说不知道、没有、保密或婉拒，都算符合人设。
3. 自称是别的助手、别的公司或别的人，算跳出人设。

问题：{question}
回答：{answer}

第一行只写“符合”或“跳出”，第二行用一句话说明理由。"""


class OpenAIJudge:
    """Asks the model once for each answer; a reply without a verdict leaves the answer undecided.

    `base_url` ends in /v1 as a rule; `key` goes into the Authorization header and nowhere else. Requests that the
    server is too busy for, or that never arrive, are repeated up to `TRIES` times. May be called by several threads.
    """

    def __init__(
        self, persona: Mapping[str, str], base_url: str, model: str, key: str | None, *, timeout: float = 60
    ) -> None:
        if not re.match("https?://[^/]", base_url):
            raise InputError("this is no address", where="--base-url", fix="write http://HOST:PORT/v1")
        self._persona = "\n".join(f"- {name}：{value}" for name, value in persona.items())
        self._address = base_url.rstrip("/") + "/chat/completions"
        self._model = model
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(timeout=timeout, headers=headers)

    def __enter__(self) -> OpenAIJudge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def __call__(self, answer: Answer) -> Verdict:
        """Judge one answer. Raises JobError when the server refuses the request or cannot be reached."""
        prompt = _PROMPT.format(persona=self._persona, question=answer.question, answer=answer.answer)
        return verdict_of(self._ask(prompt))

    def _ask(self, prompt: str) -> str:
        request = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": 200,
        }
        for attempt in range(1, TRIES + 1):
            try:
                response = self._client.post(self._address, json=request)
            except httpx2.TransportError as error:
                failure = f"the judge cannot be reached: {type(error).__name__}"
            else:
                if response.status_code == 200:
                    return _content(response, self._address)
                failure = f"the judge answers with status {response.status_code}: {_message(response)}"
                if response.status_code not in (408, 409, 429) and response.status_code < 500:
                    raise JobError(failure, where=self._address, fix="check --base-url, --model and the key")
            if attempt < TRIES:
                time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        raise JobError(f"{failure} ({TRIES} tries)", where=self._address, fix="try again when it runs")


def verdict_of(reply: str) -> Verdict:
    """Read a verdict: the first of 符合 and 跳出, and the reason behind it."""
    found = re.search("(不|没有?|未)?(符合|跳出)", reply)
    if found is None:
        return Verdict(None, f"the judge gave no verdict: {' '.join(reply.split())[:80]}")
    inside = (found[2] == "符合") != bool(found[1])
    reason = " ".join(reply[found.end() :].split()).lstrip("。：:，, 人设")
    return Verdict(inside, reason or found[0])


def _content(response: httpx2.Response, address: str) -> str:
    try:
        content: Any = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        content = None
    if not isinstance(content, str):
        raise JobError(
            "the judge's reply is not one of OpenAI's chat API", where=address, fix="check --base-url: it ends in /v1"
        )
    return content


def _message(response: httpx2.Response) -> str:
    """What the server says is wrong, on one line."""
    try:
        error: Any = response.json()["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        text = response.text
    return " ".join(text.split())[:200]
