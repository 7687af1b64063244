"""Tasks of EleutherAI's evaluation harness (lm-eval) on an adapter as it would be served.

The harness reads a task's YAML file, downloads its rows and words its prompts; the model that it
asks is `trainables.serving`'s. It is an extra, imported by the first call.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainables.contract import ServingForm
from trainables.errors import DataError, SpecError
from trainables.generation import end_tokens
from trainables.serving import Served, load_served
from trainables.templates import Asking, ChatTemplate

FORMAT = "lorchestra.harness/1"

_PACKAGES = ("lm_eval", "torch", "transformers", "peft", "datasets")
_FEWSHOT_SEED = 1234  # lm-eval's own default
_NO_FILTER = "none"
_SHOWN_NAMES = 20


def run_harness(  # noqa: PLR0913
    bundle: Path,
    form: ServingForm,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    base_model: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Run tasks of the harness on an adapter in one serving form.

    An adapter of chat rows is asked through its base's chat template with the settings of its
    training, with few-shot examples as turns of a conversation; another one is asked plainly.
    Few-shot examples are lm-eval's choice under its default seed.

    Args:
        bundle: An exported adapter.
        form: How it is served; see `trainables.serving`.
        tasks: Names of tasks, groups or tags.
        include_path: A folder of task files; they go before the harness's own of the same name.
        limit: Rows of each task at most; all when not given.
        batch_size: Requests per forward pass.
        base_model: Where the base lies, where that is not what the manifest says.
        device: Such as `cuda:0`.

    Returns:
        Plain values: `adapter` (digest of the bundle), `form`, `limit`, `packages`, and by name
        `tasks` of `{"version", "num_fewshot", "rows", "metrics"}`. A metric is `{"value",
        "stderr", "higher_is_better"}`, the error `None` where lm-eval gives none; its name is
        followed by `,FILTER` where the task filters answers.

    Raises:
        SpecError: lm-eval is not installed, a task is unknown or not of text alone, or a number
            is impossible.
        DataError: The rows of a task cannot be read.
        BundleError: The bundle's files are not what its manifest says.
        BaseModelError: The base cannot be found or loaded.
    """
    _require_at_least_one("limit", limit)
    _require_at_least_one("batch_size", batch_size)
    if not tasks:
        raise SpecError("tasks: got none; allowed: one or more names. Name a task.")
    evaluate, model_class = _import_harness()
    with _hushed():
        manager = _find_tasks(tasks, include_path)
        loaded = _load_tasks(manager, tasks)
        served = load_served(bundle, form, base_model=base_model, device=device)
        is_chat = served.manifest["data"].get("prompt_style") == "chat"
        found = evaluate(
            lm=_build_model(model_class, served, batch_size),
            task_dict=loaded,
            limit=limit,
            log_samples=False,
            apply_chat_template=is_chat,
            fewshot_as_multiturn=is_chat,
        )
    return {
        "format": FORMAT,
        "adapter": served.manifest["digest"],
        "form": served.form,
        "limit": limit,
        "tasks": {name: _describe(name, found) for name in sorted(found["results"])},
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _require_at_least_one(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise SpecError(f"{name}: got {value}; allowed: 1 or more. Leave it out for the default.")


def _import_harness() -> tuple[Any, Any]:
    """The harness's `evaluate` and its class of models.

    Raises:
        SpecError: It is not installed.
    """
    try:
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise SpecError(
            f"tasks: got some without lm-eval ({error}); allowed: tasks with lm-eval installed. "
            "Install it: pip install 'lorchestra[lm-eval]'"
        ) from error
    return evaluate, HFLM


def _find_tasks(tasks: Sequence[str], include_path: Path | None) -> Any:
    """The harness's index of task files, with all of these tasks in it.

    Raises:
        SpecError: One of them is in none.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise SpecError(
            f"include_path: got {str(include_path)!r}; allowed: a folder of task files. Check the "
            "path."
        )
    own = TaskManager(include_path=include_path, include_defaults=False)
    if all(task in own.all_tasks for task in tasks):
        return own  # without reading the harness's own files: 14 thousand, 18 s
    every = TaskManager(include_path=include_path)
    unknown = [task for task in tasks if task not in every.all_tasks]
    if unknown:
        raise SpecError(
            f"tasks: got {unknown[0]!r}; allowed: {_what_there_is(unknown[0], own, every)}. "
            "Correct the name, or say with include_path where its file lies."
        )
    return every


def _what_there_is(unknown: str, own: Any, every: Any) -> str:
    parts = []
    if own.all_tasks:
        shown = own.all_tasks[:_SHOWN_NAMES]
        rest = len(own.all_tasks) - len(shown)
        parts.append(f"{', '.join(shown)}{f' and {rest} more' if rest else ''} of include_path")
    version = importlib.metadata.version("lm_eval")
    count = len(every.all_tasks) - len(own.all_tasks)
    near = ", ".join(difflib.get_close_matches(unknown, every.all_tasks))
    parts.append(f"one of the {count} of lm-eval {version}{f' (near: {near})' if near else ''}")
    return ", ".join(parts)


def _load_tasks(manager: Any, tasks: Sequence[str]) -> Any:
    """The tasks with their rows, set up as lm-eval's own command does.

    Raises:
        DataError: Rows cannot be read, or a task file is broken.
        SpecError: A task runs code or is not of text.
    """
    try:
        loaded = manager.load(list(dict.fromkeys(tasks)))
    # What datasets raises for rows that cannot be had: no network, no such file, no such hub id.
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"tasks: the rows of {', '.join(tasks)} cannot be read ({error}); allowed: tasks "
            "whose rows are local files or in the cache of datasets, or a way to the hub. Check "
            "the task file and the network."
        ) from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise SpecError(
                f"tasks: got {name!r}, which runs code that a model wrote, or asks about images "
                "or sounds; allowed: tasks of text that is only compared. Choose another task."
            )
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return loaded


def _build_model(model_class: Any, served: Served, batch_size: int) -> Any:
    """The harness's model, asked and stopped as the adapter was trained."""
    data = served.manifest["data"]
    trained = (data.get("end_tokens") or {}).values()
    ends = end_tokens(served.model, served.tokenizer, trained)
    served.model.generation_config.eos_token_id = list(ends)
    pad, known = served.tokenizer.pad_token_id, served.model.get_input_embeddings().weight.shape[0]
    if pad is not None and pad >= known:
        # The harness gives it to the base, which has no row for it. It masks it, so any one does.
        served.tokenizer.pad_token = served.tokenizer.eos_token
    options: dict[str, Any] = {}
    cut = ""
    if data.get("prompt_style") == "chat":
        template = ChatTemplate(served.tokenizer, Asking.from_record(data))
        served.tokenizer.chat_template = template.pinned
        options["chat_template_args"], cut = template.args, template.asking.prefill_cut
    model = model_class(
        pretrained=served.model,
        tokenizer=served.tokenizer,
        backend="causal",
        batch_size=batch_size,
        **options,
    )
    if cut:
        render = model.apply_chat_template
        model.apply_chat_template = lambda *turns, **how: render(*turns, **how).removesuffix(cut)
    return model


def _describe(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the harness found out about one task or group."""
    measured = found["results"][name]
    directions = found["higher_is_better"].get(name, {})
    metrics = {}
    for key, value in measured.items():
        metric, comma, answer_filter = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue  # names and counts, and what is read beside its metric
        error = measured.get(f"{metric}_stderr,{answer_filter}")
        metrics[metric if answer_filter == _NO_FILTER else key] = {
            "value": float(value),
            "stderr": float(error) if isinstance(error, int | float) else None,
            "higher_is_better": directions.get(metric),
        }
    return {
        "version": found["versions"].get(name),
        "num_fewshot": found["n-shot"].get(name),
        "rows": found["n-samples"].get(name, {}).get("effective"),
        "metrics": metrics,
    }


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep lm-eval's log to errors: it warns of a model that was made before, as ours is."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
