"""What Prometheus may read about a server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from spark13b.infer.requests import Generation

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(
        self, waiting: Callable[[], int], running: Callable[[], int], open_requests: Callable[[], int]
    ) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("spark13b_requests", "Answers by outcome", ("path", "status"), registry=registry)
        self._prompt = Counter("spark13b_prompt_tokens", "Tokens of prompts", registry=registry)
        self._reused = Counter(
            "spark13b_reused_prompt_tokens", "Those of them that needed no reading", registry=registry
        )
        self._new = Counter("spark13b_generated_tokens", "Tokens of answers", registry=registry)
        self._ended = Counter("spark13b_answers", "Answers by why they ended", ("reason",), registry=registry)
        self._first = Histogram(
            "spark13b_first_token_seconds", "Until the first token", registry=registry, buckets=_SECONDS
        )
        self._each = Histogram(
            "spark13b_token_seconds", "Each further token of an answer", registry=registry, buckets=_SECONDS
        )
        for name, text, read in (
            ("waiting", "Answers that wait for a seat", waiting),
            ("running", "Answers that have a seat", running),
            ("open", "Requests that run or wait", open_requests),
        ):
            Gauge(f"spark13b_{name}", text, registry=registry).set_function(read)

    def count(self, path: str, status: int) -> None:
        """A request was answered."""
        self._requests.labels(path, str(status)).inc()

    def ended(self, generation: Generation) -> None:
        """An answer has ended, by itself or because nobody waits for it any more."""
        self._ended.labels(generation.finish_reason or "cancelled").inc()
        if generation.first_token_at is None:  # its prompt was not read
            return
        self._prompt.inc(len(generation.request.prompt))
        self._reused.inc(generation.reused)
        self._new.inc(len(generation.tokens))
        self._first.observe(generation.first_token_at - generation.added_at)
        if generation.finished_at is not None and len(generation.tokens) > 1:
            seconds = generation.finished_at - generation.first_token_at
            self._each.observe(seconds / (len(generation.tokens) - 1))

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self._registry)
