"""`python -m moesaic.entrypoints.api_server --model ...` is `moesaic serve --model ...`."""

import sys

from moesaic.entrypoints.cli.main import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
