"""One process that goes through many mutated checkpoints: numbers come on standard input, results go out as JSON."""

import io
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.fuzz.bases import RECORDED

REFUSED = (  # bases, good as they are, with which a tool does nothing
    ("gguf", {"adapt": "CheckpointError"}),
    ("niche", {"inspect": "CheckpointError"}),
)
MEMORY_LIMIT = 24 << 30  # of addresses, beyond which even an allocation that nothing touches fails
TEXTS = ("Hello world! 12345 \u00e9\u4e2d\U0001f600 \0 <|end|>", "a" * 60 + "!", " " * 50, "")
MESSAGES = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]


def main(bases: Path, scratch: Path, way: str) -> None:
    """Until standard input ends."""
    os.environ |= {"MOESAIC_LOG_LEVEL": "CRITICAL", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import torch

    from tests.fuzz.cases import make_case

    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, io.StringIO()
    go_through = serve if way == "serve" else use_tools
    for base in sorted(bases.iterdir()):  # all is imported, and what can be cached is, before memory is measured
        wrong = {step: end for step, end in go_through(str(base)).items() if end != "ok"}
        assert not wrong or (base.name, wrong) in REFUSED, (base.name, wrong)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        folder = scratch / "model"
        shutil.rmtree(folder, ignore_errors=True)
        case = make_case(int(line), bases, folder, way)
        before, start = _forget_peak(), time.perf_counter()
        steps = go_through(str(folder))
        took, grown = time.perf_counter() - start, _memory("VmHWM") - before
        print(json.dumps(asdict(case) | {"steps": steps, "seconds": took, "grown": grown}), file=answers, flush=True)


def serve(path: str) -> dict[str, str]:
    """What a user would do with a checkpoint: the error's class by step, or "ok"; "!" before what is none of ours."""
    held: dict[str, Any] = {}
    steps: dict[str, Callable[[], None]] = {
        "inspect": lambda: _inspect(path),
        "tokenizer": lambda: _tokenizer(path),
        "load": lambda: _load(path, held),
    }
    ends = {name: attempt(step) for name, step in steps.items()}
    if ends["load"] == ends["tokenizer"] == "ok":
        ends["generate"] = attempt(lambda: _generate(held["llm"]))
    return ends


def use_tools(path: str) -> dict[str, str]:
    """The same with the tools around a checkpoint; of a folder with a recorded reference, that it is read."""
    from tests.fuzz import tools

    if os.path.lexists(os.path.join(path, RECORDED)):
        return {"reference": attempt(lambda: tools.read_recorded(os.path.join(path, RECORDED)))}
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "draft.py")
        steps: dict[str, Callable[[], None]] = {
            "inspect": lambda: _inspect(path),
            "adapt": lambda: tools.draft(path, file),
            "plan": lambda: tools.plan_it(path, file),
            "hf": lambda: tools.convert_it(path, os.path.join(folder, "hf"), "hf", file),
            "packed": lambda: tools.convert_it(path, os.path.join(folder, "packed"), "packed", file),
        }
        return {name: attempt(step) for name, step in steps.items()}


def attempt(step: Callable[[], None]) -> str:
    """How it ended."""
    from moesaic.core.errors import MoesaicError

    try:
        step()
    except MoesaicError as e:
        message = str(e)
        return type(e).__name__ if len(message) < 5000 else f"!{type(e).__name__} of {len(message)} letters"
    except BaseException as e:  # Rust's panics are no Exceptions
        import traceback

        where = traceback.extract_tb(e.__traceback__)[-4:]
        frames = " < ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in reversed(where))
        return f"!{type(e).__name__}: {str(e)[:200]} [{frames}]"
    return "ok"


def _inspect(path: str) -> None:
    from rich.console import Console

    from moesaic.adapt.report import report_on
    from moesaic.adapt.show import show
    from moesaic.adapt.survey import survey

    report = report_on(survey(path))
    json.dumps(report.as_dict())
    show(report, Console(file=io.StringIO(), width=100))
    if not report.ok:
        from moesaic.core.errors import CheckpointError

        raise CheckpointError("; ".join(map(str, report.problems[:3]))[:4000])


def _tokenizer(path: str) -> None:
    from moesaic.engine.tokenizer import Tokenizer

    tokenizer = Tokenizer(path)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        tokenizer.decode(ids)
        tokenizer.decode([*ids, 0, 1535, 100_000], skip_special_tokens=False)
        for token in {*ids[:8], 0, 1535, 100_000}:
            tokenizer.token_bytes(token)
    if tokenizer.has_chat_template:
        for messages, prompt in ((MESSAGES[:1], True), (MESSAGES, False)):
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt)
            tokenizer.encode(text, add_special_tokens=False)


def _load(path: str, held: dict[str, Any]) -> None:
    from moesaic import LLM

    held["llm"] = LLM(path, skip_tokenizer_init=True, kv_cache_memory="1MiB", pack_cache="off")


def _generate(llm: Any) -> None:
    from moesaic import SamplingParams

    llm.generate([[5, 6, 7]], SamplingParams(max_tokens=1, temperature=0), use_tqdm=False)


def _memory(field: str) -> int:
    """Bytes, of this process."""
    with open("/proc/self/status") as f:
        line = next(line for line in f if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _forget_peak() -> int:
    """Let the peak of memory be what is held now, and say how much that is."""
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    return _memory("VmRSS")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
