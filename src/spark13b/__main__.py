"""`python -m spark13b` is the `spark13b` command."""

from spark13b.cli.main import main

if __name__ == "__main__":
    main()
