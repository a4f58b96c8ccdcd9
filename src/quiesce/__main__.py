"""`python -m quiesce` is the `quiesce` command."""

from quiesce.cli.main import main

if __name__ == "__main__":
    main()
