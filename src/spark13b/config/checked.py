"""`Checked`, the base of every configuration model: no unknown keys, no changes, all broken rules told at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator


@dataclass(frozen=True)
class Problem:
    """One broken rule, or one wrong value.

    `key` is dotted and counted from the model that holds the rule; `what` reads on after `key: `. `besides` names the
    other keys of the rule: the one written last is taken for the culprit.
    """

    key: str
    what: str
    fix: str | None = None
    besides: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.key}: {self.what}" + (f" ({self.fix})" if self.fix else "")


class BrokenRules(ValueError):
    """Raised inside a pydantic validator, so that the broken rules arrive together and keep their keys."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(map(str, problems)))


class Checked(BaseModel):
    """A model whose own rules, between its keys, are what `_problems` yields."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = tuple(self._problems())
        if problems:
            raise BrokenRules(problems)
        return self

    def _problems(self) -> Iterator[Problem]:
        """The broken rules; every field is valid by itself already."""
        yield from ()
