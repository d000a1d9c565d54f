"""LLM: the offline face. Many prompts in, their outputs in the same order (vLLM's interface)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from os import PathLike, fspath
from typing import Any

from moesaic.core.errors import RequestError
from moesaic.core.log import setup_logging
from moesaic.core.outputs import RequestOutput
from moesaic.core.sampling_params import SamplingParams
from moesaic.engine.args import EngineArgs
from moesaic.engine.frontend import Prompt
from moesaic.engine.llm_engine import LLMEngine
from moesaic.engine.tokenizer import Tokenizer

Messages = list[dict[str, Any]]


class LLM:
    """A model in this process.

    Args:
        model: folder, Hugging Face id, or "moe-model" (embedded).
        kwargs: any field of EngineArgs; an unknown one raises ConfigError with the nearest name.
    """

    def __init__(self, model: str | None = None, **kwargs: Any) -> None:
        setup_logging()
        if model is not None:
            kwargs["model"] = model
        self.llm_engine = LLMEngine.from_engine_args(EngineArgs(**kwargs))
        self._ids = count()

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.llm_engine.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt.

        Args:
            prompts: one or many; each is text, token ids, or a dict with `prompt` or `prompt_token_ids`.
            sampling_params: one for all, or one a prompt.
            use_tqdm: show progress (the name is vLLM's).
            priority: one a prompt; lower runs first.

        Returns:
            one finished RequestOutput a prompt, in order.

        Raises:
            RequestError: a prompt or its parameters cannot be served; none of them is.
        """
        many = _as_list(prompts)
        params = self._params_for(many, sampling_params)
        if priority is not None and len(priority) != len(many):
            raise RequestError(f"{len(many)} prompts, but {len(priority)} priorities", "priority")
        ids: list[str] = []
        try:
            for i, (prompt, param) in enumerate(zip(many, params, strict=True)):
                request_id = f"llm-{next(self._ids)}"
                self.llm_engine.add_request(request_id, prompt, param, priority=priority[i] if priority else 0)
                ids.append(request_id)
            return self._run(ids, use_tqdm)
        except BaseException:  # an interrupt too must not leave requests behind
            for request_id in ids:
                self.llm_engine.abort_request(request_id)
            raise

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or many, through the model's chat template. Raises RequestError as `generate`."""
        if self.tokenizer is None:
            raise RequestError("chat needs a tokenizer: the engine runs with skip_tokenizer_init", "messages")
        one = bool(messages) and isinstance(messages[0], dict)
        prompts: list[Prompt] = []
        for conversation in [messages] if one else messages:
            text = self.tokenizer.apply_chat_template(list(conversation), **(chat_template_kwargs or {}))  # type: ignore[arg-type]
            # the template writes its own special tokens
            prompts.append({"prompt_token_ids": self.tokenizer.encode(text, add_special_tokens=False)})
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def register_moe_routing_func(self, function: Callable[..., Any], name: str | None = None, **options: Any) -> str:
        """Let a function change how experts are chosen: `LLMEngine.register_moe_routing_func` says how."""
        return self.llm_engine.register_moe_routing_func(function, name, **options)

    def unregister_moe_routing_func(self, name: str) -> None:
        """Let it decide no more."""
        self.llm_engine.unregister_moe_routing_func(name)

    def start_moe_profile(
        self, path: str | PathLike[str], *, tags: list[str] | None = None, stream_tokens: int = 0
    ) -> None:
        """Record where tokens go, from now on, for a file that `stop_moe_profile` writes (`experts.profile_file`).

        Args:
            path: of the file; one that is there is replaced.
            tags: record only requests with one of these; all by default.
            stream_tokens: keep the choices of so many tokens one by one, too, for `--simulate-routing replay:FILE`.

        Raises:
            RequestError: routes are being recorded already, the model has no experts, or nothing can be at `path`.
        """
        self.llm_engine.ask("profile_start", path=fspath(path), tags=tags, stream_tokens=stream_tokens, overwrite=True)

    def stop_moe_profile(self) -> dict[str, Any]:
        """Write the file.

        Returns:
            `path`, `tokens`, `seconds` and `bytes`.

        Raises:
            RequestError: nothing is being recorded, or the file cannot be written.
        """
        status: dict[str, Any] = self.llm_engine.ask("profile_stop")
        return {name: status[name] for name in ("path", "tokens", "seconds", "bytes")}

    def load_routing_profile(self, profile: str | PathLike[str] | Mapping[str, Any]) -> str:
        """Take a routing profile: a file, which is read again when it changes, or what would stand in one.

        Returns:
            its name, for `set_routing_profile` and for `SamplingParams(routing={"profile": name})`.

        Raises:
            ConfigError: it cannot be read, does not fit the model, or another has its name.
        """
        return self.llm_engine.frontend.profiles.add(profile)

    def set_routing_profile(self, name: str | None) -> None:
        """Choose the profile of requests to come that name none; None for the model's own routes. Raises RequestError
        of an unknown name."""
        self.llm_engine.frontend.profiles.activate(name)

    def routing_profiles(self) -> dict[str, Any]:
        """Every routing profile, and which one is active, as `GET /v1/moe/routing` lists them."""
        return self.llm_engine.frontend.profiles.listing()

    @staticmethod
    def _params_for(
        prompts: list[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> Sequence[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or SamplingParams()] * len(prompts)
        if len(params) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts, but {len(params)} sampling_params", "sampling_params")
        return params

    def _run(self, ids: list[str], show_progress: bool) -> list[RequestOutput]:
        from rich.console import Console
        from rich.progress import Progress, TextColumn

        done: dict[str, RequestOutput] = {}
        columns = (*Progress.get_default_columns(), TextColumn("{task.fields[rate]}"))
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not show_progress) as progress:
            task = progress.add_task("prompts", total=len(ids), rate="")
            while len(done) < len(ids):
                finished = [output for output in self.llm_engine.step() if output.finished]
                done.update((output.request_id, output) for output in finished)
                if finished and show_progress:
                    tokens = sum(len(c.token_ids) for output in done.values() for c in output.outputs)
                    elapsed = progress.tasks[task].elapsed or 1e-9
                    progress.update(task, completed=len(done), rate=f"{tokens / elapsed:.0f} tokens/s")
        return [done[request_id] for request_id in ids]


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt, in any form, or a sequence of them, as a list."""
    if isinstance(prompts, str | dict) or (len(prompts) > 0 and all(isinstance(p, int) for p in prompts)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
