"""The `spark13b` command, and `python -m spark13b`."""

import sys


def main() -> None:
    """Run the command; who stops it while its modules are still being imported sees no traceback either."""
    try:
        from spark13b.cli.main import main as command
    except KeyboardInterrupt:
        sys.exit("error: stopped before the end (Ctrl-C)")
    command()


if __name__ == "__main__":
    main()
