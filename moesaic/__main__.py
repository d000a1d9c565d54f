"""`python -m moesaic` is the command `moesaic`."""

from moesaic.entrypoints.cli.main import main

if __name__ == "__main__":
    main()
