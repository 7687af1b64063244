"""Tasks of EleutherAI's evaluation harness (lm-eval) on an adapter in a serving form.

The harness reads a task's YAML file, downloads the rows and writes the prompts;
`trainables.evaluation.serving` loads the model. lm-eval is an optional dependency, imported by the
first call.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainables.chat.templates import Asking, ChatTemplate
from trainables.contract import ServingForm
from trainables.errors import DataError, SpecError
from trainables.evaluation.generation import end_tokens
from trainables.evaluation.serving import Served, load_served

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

    An adapter trained on chats is prompted through its base's chat template with the settings of
    its training, and few-shot examples become turns of a conversation; any other adapter gets
    plain text. lm-eval chooses the few-shot examples under its default seed.

    Args:
        bundle: An exported adapter.
        form: The serving form; see `trainables.evaluation.serving`.
        tasks: Names of tasks, groups or tags.
        include_path: A folder of task files; these take precedence over harness tasks of that
            name.
        limit: Most rows of each task; all rows when not given.
        batch_size: Requests per forward pass.
        base_model: Location of the base, where it differs from the manifest's.
        device: Such as `cuda:0`.

    Returns:
        Plain values: `adapter` (digest of the bundle), `form`, `limit`, `packages`, and by name
        `tasks` of `{"version", "num_fewshot", "rows", "metrics"}`. A metric is `{"value",
        "stderr", "higher_is_better"}`; `stderr` is `None` where lm-eval gives none. The metric's
        name is followed by `,FILTER` where the task filters answers.

    Raises:
        SpecError: lm-eval is not installed, a task is unknown or needs more than text, or a number
            is impossible.
        DataError: The rows of a task cannot be read.
        BundleError: A file of the bundle differs from the manifest.
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
    """The `evaluate` function and the model class of lm-eval.

    Raises:
        SpecError: lm-eval is not installed.
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
    """The harness's index of task files, which contains every requested task.

    Raises:
        SpecError: A task is in no index.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise SpecError(
            f"include_path: got {str(include_path)!r}; allowed: a folder of task files. Check the "
            "path."
        )
    own = TaskManager(include_path=include_path, include_defaults=False)
    if all(task in own.all_tasks for task in tasks):
        return own  # skips the harness's own task files: 14 thousand files, 18 s
    every = TaskManager(include_path=include_path)
    unknown = [task for task in tasks if task not in every.all_tasks]
    if unknown:
        known = _describe_known(unknown[0], own.all_tasks, every.all_tasks)
        raise SpecError(
            f"tasks: got {unknown[0]!r}; allowed: {known}. "
            "Correct the name, or give the folder of the task file as include_path."
        )
    return every


def _describe_known(unknown: str, own: Sequence[str], every: Sequence[str]) -> str:
    """The known tasks in words: all of include_path, and similar names of lm-eval."""
    parts = []
    if own:
        shown = own[:_SHOWN_NAMES]
        rest = len(own) - len(shown)
        parts.append(f"{', '.join(shown)}{f' and {rest} more' if rest else ''} of include_path")
    version = importlib.metadata.version("lm_eval")
    count = len(every) - len(own)
    near = ", ".join(difflib.get_close_matches(unknown, every))
    parts.append(f"one of the {count} of lm-eval {version}{f' (near: {near})' if near else ''}")
    return ", ".join(parts)


def _load_tasks(manager: Any, tasks: Sequence[str]) -> Any:
    """The tasks with their rows, set up as the lm-eval command does.

    Raises:
        DataError: Rows cannot be read, or a task file is invalid.
        SpecError: A task runs code or needs more than text.
    """
    try:
        loaded = manager.load(list(dict.fromkeys(tasks)))
    # Errors of datasets when rows are unavailable: no network, no such file, no such hub id.
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"tasks: the rows of {', '.join(tasks)} cannot be read ({error}); allowed: tasks "
            "whose rows are local files or in the cache of datasets, or a way to the hub. Check "
            "the task file and the network."
        ) from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise SpecError(
                f"tasks: got {name!r}, which runs generated code or asks about images or sounds; "
                "allowed: tasks that only compare texts. Choose another task."
            )
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return loaded


def _build_model(model_class: Any, served: Served, batch_size: int) -> Any:
    """The harness's model object, with the prompt format and end tokens from training."""
    data = served.manifest["data"]
    trained = (data.get("end_tokens") or {}).values()
    ends = end_tokens(served.model, served.tokenizer, trained)
    served.model.generation_config.eos_token_id = list(ends)
    pad, known = served.tokenizer.pad_token_id, served.model.get_input_embeddings().weight.shape[0]
    if pad is not None and pad >= known:
        # The base has no row for the pad token. The harness masks it, so any known token serves.
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
    """Result of one task or group: version, few-shot examples, rows and metrics."""
    measured = found["results"][name]
    directions = found["higher_is_better"].get(name, {})
    metrics = {}
    for key, value in measured.items():
        metric, comma, answer_filter = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue  # names, counts and standard errors
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
    """Limit lm-eval's log to errors: lm-eval warns when given a model object."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
