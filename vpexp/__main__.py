"""``python -m vpexp``: the command line."""

from vpexp.cli import main

if __name__ == "__main__":
    main()
