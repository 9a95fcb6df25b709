"""`python -m sept`: the same as the `sept` command."""

from sept.cli import main

if __name__ == "__main__":
    main()
