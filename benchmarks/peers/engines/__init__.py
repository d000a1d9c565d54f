"""One engine a file, each a class `Engine`: `Engine(load)`, `version`, `run(prompts, output_len) -> Done`."""
