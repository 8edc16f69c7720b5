"""What tests of commands share."""

from __future__ import annotations

import pytest
from in_process import Run, Said

from spark13b.cli.main import run


@pytest.fixture
def spark13b(capfd: pytest.CaptureFixture[str]) -> Run:
    """A function: run `spark13b ARGUMENTS` in this process; it must end with `code`, or with any for None."""

    def call(*arguments: object, code: int | None = 0) -> Said:
        capfd.readouterr()
        said = Said(run([*map(str, arguments)]), *capfd.readouterr())
        assert code is None or said.returncode == code, said.stderr
        assert "Traceback" not in said.stderr
        return said

    return call
