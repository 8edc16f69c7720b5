"""Keys of teachers: from the environment, or from a file that nobody else can read. They are shown nowhere."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spark13b.errors import InputError

SPARK = ("SPARK_APP_ID", "SPARK_API_KEY", "SPARK_API_SECRET")
OPENAI = ("SPARK13B_TEACHER_API_KEY", "OPENAI_API_KEY")  # the first that is set
_LINE = re.compile(r"(?:export\s+)?(\w+)\s*=\s*(.*)")


@dataclass(frozen=True)
class SparkCredentials:
    """What the Spark web API knows its customers by. No repr shows them."""

    app_id: str = field(repr=False)
    api_key: str = field(repr=False)
    api_secret: str = field(repr=False)


def spark_credentials(file: Path | None) -> SparkCredentials:
    """The three values, of a file or else of the environment. Raises InputError naming those that are missing."""
    found = _values(file)
    missing = [name for name in SPARK if not found.get(name)]
    if missing:
        raise InputError(
            f"{_and(missing)} {'is' if len(missing) == 1 else 'are'} not set",
            where=file or "the environment",
            fix=f"set {_and(SPARK)} (of the vendor's console), or write them into a file for --credentials",
        )
    return SparkCredentials(*(_checked(name, found[name], file) for name in SPARK))


def openai_key(file: Path | None) -> str | None:
    """The key for an OpenAI-style endpoint; None when there is none, which many of one's own endpoints accept."""
    found = _values(file)
    name = next((name for name in OPENAI if found.get(name)), None)
    if name is None and file is not None:
        raise InputError(f"the file sets neither {' nor '.join(OPENAI)}", where=file, fix=f"write {OPENAI[0]}=...")
    return None if name is None else _checked(name, found[name], file)


def _values(file: Path | None) -> Mapping[str, str]:
    """Lines `NAME=value` of a file, or the environment."""
    if file is None:
        return os.environ
    try:
        handle = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        raise InputError("there is no such file", where=file, fix="check --credentials") from None
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise InputError("this is not a regular file", where=file, fix="check --credentials")
        if status.st_uid not in (os.geteuid(), 0):
            raise InputError("the credentials belong to another user", where=file, fix="copy them to a file of yours")
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise InputError(
                f"others can read the credentials (mode {status.st_mode & 0o777:03o})",
                where=file,
                fix=f"chmod 600 '{file}'; and have new ones made if somebody may have read them",
            )
        data = stream.read()
    values = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pair = _LINE.fullmatch(line.strip())
        if pair is None:  # the line is not shown: it may hold a secret
            raise InputError("the line is no NAME=value", where=file, line=number, fix=f"write {SPARK[0]}=...")
        values[pair[1]] = pair[2].strip().strip("\"'")
    return values


def _checked(name: str, value: str, file: Path | None) -> str:
    """A value fit for a header. Libraries show an unfit one in their errors, so it must not come that far."""
    value = value.strip()
    if not re.fullmatch(r"[!#-~]+", value):
        raise InputError(
            f"{name} has a character that no key has (it is not shown)",
            where=file or "the environment",
            fix="copy it again",
        )
    return value


def _and(names: list[str] | tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
