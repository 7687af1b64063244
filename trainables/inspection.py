"""What a base will make of the rows, told from its tokenizer alone: no weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainables.data import encode_splits
from trainables.data_spec import DataSpec
from trainables.data_summary import DataSummary, summarize
from trainables.errors import BaseModelError
from trainables.shape import context_length
from trainables.spec import BaseSpec
from trainables.splits import RawSplits


def inspect_data(
    base: BaseSpec, data: DataSpec, raw: RawSplits, compared_on: int | None = None
) -> DataSummary:
    """How the rows are read, parted and cut with the tokenizer of a base.

    Args:
        base: Whose tokenizer is used.
        data: The spec that the rows are of.
        raw: The rows.
        compared_on: Most validation rows that trials are compared on.

    Raises:
        BaseModelError: The base has no tokenizer that can be read.
        DataError: No row of a split has an answer within its limit, or a row cannot be rendered.
    """
    splits = encode_splits(raw, data, load_tokenizer_only(base))
    return summarize(raw, splits, positions=context_length(base), compared_on=compared_on)


def load_tokenizer_only(base: BaseSpec) -> Any:
    """The tokenizer of a base; of a hub model, its weights are not fetched.

    Raises:
        BaseModelError: The base has no tokenizer that can be read.
    """
    # Imported here: it takes seconds.
    from transformers import AutoTokenizer

    from trainables.shape import gguf_path

    options: dict[str, Any] = {}
    place = base.model
    if base.model.startswith("package:") or base.model.endswith(".gguf"):
        file = gguf_path(base.model)
        place, options = str(file.parent), {"gguf_file": file.name}
    elif Path(base.model).expanduser().is_dir():
        place = str(Path(base.model).expanduser())
    else:
        options = {"revision": base.revision or "main"}
    try:
        return AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BaseModelError(
            f"base.model: the tokenizer of {base.model!r} cannot be read ({reason}); allowed: a "
            "base with its tokenizer files. Check the name, your network and HF_TOKEN, or save "
            "the tokenizer beside the weights."
        ) from error
