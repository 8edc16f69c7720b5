"""`spark13b native`: build the library that makes answers on a CPU fast."""

from __future__ import annotations

import typer

from spark13b.cli import options

app = typer.Typer(
    no_args_is_help=True,
    help="Build the library that makes answers on a CPU fast.",
    epilog="Example: spark13b native build",
)


@app.callback()
def _native() -> None:
    """Build the library that makes answers on a CPU fast."""


@app.command("build", epilog="Example: spark13b native build")
def build(as_json: options.Json = False) -> None:
    """Compile the library with this machine's C++ compiler (CXX, c++, g++ or clang++) into the user's cache.

    Installation does the same where it finds a compiler. Without the library MindSpore computes all.
    """
    from spark13b.cli.console import print_json
    from spark13b.errors import JobError
    from spark13b.native import build as building
    from spark13b.native.library import Library

    try:
        path = building.build(building.cache_folder())
        library = Library(path)
    except building.BuildError as error:
        fix = f"{error.fix}; without the library MindSpore computes all"
        raise JobError(f"the native library was not built: {error}", fix=fix) from error
    except OSError as error:
        raise JobError(f"the native library was built, and does not load: {error}", where=path) from error
    if as_json:
        print_json({"library": str(path), "instructions": library.level, "compiler": library.compiler})
    else:
        print(f"{path}: {library.describe()}")
