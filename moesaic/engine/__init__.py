"""From text to tokens and back: the engine, its offline and asynchronous faces, tokeniser and metrics."""
