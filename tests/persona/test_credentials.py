"""Keys come from the environment or a file that only its owner can read, and no message shows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spark13b.errors import InputError
from spark13b.persona.credentials import SparkCredentials, openai_key, spark_credentials

TEXT = "# of the console\nSPARK_APP_ID=app1\nexport SPARK_API_KEY = 'key2'\n\nSPARK_API_SECRET=secret3\n"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPARK_APP_ID", "SPARK_API_KEY", "SPARK_API_SECRET", "SPARK13B_TEACHER_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def file(folder: Path, text: str = TEXT, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def test_the_environment_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SPARK_APP_ID", "a"), ("SPARK_API_KEY", "b"), ("SPARK_API_SECRET", "c\n")):
        monkeypatch.setenv(name, value)
    assert spark_credentials(None) == SparkCredentials("a", "b", "c")


def test_a_file_of_its_owner_is_read(tmp_path: Path) -> None:
    assert spark_credentials(file(tmp_path)) == SparkCredentials("app1", "key2", "secret3")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(InputError, match="others can read") as raised:
        spark_credentials(file(tmp_path, mode=mode))
    assert "chmod 600" in str(raised.value)


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = file(tmp_path)
    os.chown(path, 12345, 12345)
    with pytest.raises(InputError, match="another user"):
        spark_credentials(path)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARK_APP_ID", "a")
    with pytest.raises(InputError, match="SPARK_API_KEY and SPARK_API_SECRET are not set"):
        spark_credentials(None)
    with pytest.raises(InputError, match="SPARK_API_SECRET is not set"):
        spark_credentials(file(tmp_path, TEXT.replace("SPARK_API_SECRET", "SECRET")))


@pytest.mark.parametrize(
    "text", ["SPARK_APP_ID: hidden7", "SPARK_APP_ID=a\nSPARK_API_KEY=hid den7\nSPARK_API_SECRET=c"]
)
def test_a_value_that_cannot_be_one_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as raised:
        spark_credentials(file(tmp_path, text))
    assert "den7" not in str(raised.value)


def test_an_openai_key_may_be_absent_from_the_environment_but_not_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert openai_key(None) is None
    monkeypatch.setenv("OPENAI_API_KEY", "one")
    monkeypatch.setenv("SPARK13B_TEACHER_API_KEY", "two")
    assert openai_key(None) == "two"
    with pytest.raises(InputError, match="neither"):
        openai_key(file(tmp_path))
