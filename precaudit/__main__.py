"""`python -m precaudit` is the `precaudit` command."""

from precaudit.cli import main

if __name__ == "__main__":
    main()
