"""Reading of a YAML file as a mapping; errors name the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import SweepSpecError
from orchestrator.spec.complaint import complaint


class _UniqueKeyLoader(yaml.SafeLoader):
    """Loader that refuses a repeated key; PyYAML would silently keep the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that the mapping already has."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_mapping(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Raises:
        SweepSpecError: The file is missing, is not YAML or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SweepSpecError(
            f"sweep file: cannot read {str(path)!r} ({error}); allowed: a readable UTF-8 YAML "
            "file. Check the path."
        ) from error
    try:
        # The loader is a SafeLoader: it builds plain values only.
        values = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise SweepSpecError(
            f"{place}: {error.problem}; allowed: YAML. Correct the file there."
        ) from error
    except yaml.YAMLError as error:
        raise SweepSpecError(f"{path}: {error}; allowed: YAML. Correct the file.") from error
    if not isinstance(values, dict):
        raise complaint(str(path), values, "a mapping of settings", "Start with `name: my-sweep`.")
    return values
