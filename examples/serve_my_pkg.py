"""Serve a checkpoint of an architecture that this script registers: `python serve_my_pkg.py FOLDER [--port N]`.

The engine is a process of its own. It is told what was registered here, and imports it by name.
"""

import sys

from my_pkg import register

from moesaic.engine.args import EngineArgs
from moesaic.entrypoints.server.run import run_server
from moesaic.entrypoints.server.settings import ServerArgs

if __name__ == "__main__":
    register()
    folder, *rest = sys.argv[1:]
    port = int(rest[rest.index("--port") + 1]) if "--port" in rest else 8000
    args = EngineArgs(model=folder, skip_tokenizer_init=True, kv_cache_memory="64MiB", threads=1)
    sys.exit(run_server(args, ServerArgs(port=port)))
