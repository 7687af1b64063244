"""Reading of YAML; a mistake is shown in its line, with a caret below it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import SweepSpecError
from orchestrator.sweepfile.bounds import require_bounded
from orchestrator.sweepfile.loader import SweepLoader
from orchestrator.sweepfile.mistakes import find_mistake
from orchestrator.sweepfile.places import excerpt, find_field
from orchestrator.wording import refusal, remedy_for_path


@dataclass(frozen=True)
class YamlText:
    """A YAML text and where it is from.

    Attributes:
        name: The file or option, for messages.
        text: The text as written.
    """

    name: str
    text: str

    @classmethod
    def of_file(cls, path: Path) -> YamlText:
        """The text of a file.

        Raises:
            SweepSpecError: The file cannot be read.
        """
        try:
            return cls(str(path), path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise SweepSpecError(
                f"sweep file: cannot read {str(path)!r} ({why}); allowed: a readable UTF-8 YAML "
                f"file. {remedy_for_path(path)}"
            ) from error

    def value(self) -> Any:
        """The plain value that the text describes.

        Raises:
            SweepSpecError: The text is not YAML, or describes a huge value.
        """
        try:
            return self._load()
        except yaml.MarkedYAMLError as error:
            flaw, remedy, place = find_mistake(error, self.text)
            if place is None:
                raise SweepSpecError(f"{self.name}: {flaw}. {remedy}") from error
            raise SweepSpecError(
                f"{self.name}, {place}: {flaw}. {remedy}\n{excerpt(self.text, place)}"
            ) from error
        except yaml.reader.ReaderError as error:
            line = self.text[: error.position].count("\n") + 1
            raise SweepSpecError(
                f"{self.name}, line {line}: the character {chr(error.character)!r} is not allowed "
                "in YAML. Remove it, or write it as an escape in double quotes."
            ) from error

    def _load(self) -> Any:
        require_bounded(self.text, self.name)
        # The loader is a SafeLoader: it builds plain values only.
        return yaml.load(self.text, Loader=SweepLoader)

    def mapping(self) -> dict[str, Any]:
        """The mapping that the text describes.

        Raises:
            SweepSpecError: As for `value`, or the text describes something else.
        """
        values = self.value()
        if isinstance(values, dict):
            return values
        flaw = "" if values is not None else "as the file is empty"
        raise SweepSpecError(
            refusal(
                self.name, values, "a mapping of settings", "Start with `name: my-sweep`.", flaw
            )
        )

    def show_field(self, error: SweepSpecError) -> SweepSpecError:
        """The error with the line of the field that its message names, if the text has it."""
        message = str(error)
        field = message.partition(": ")[0]
        is_key = "nknown key" in message.partition(";")[0]
        place = find_field(self._root, field, is_key=is_key)
        if place is None:
            return error
        return SweepSpecError(f"{message}\n{self.name}, {place}:\n{excerpt(self.text, place)}")

    @cached_property
    def _root(self) -> yaml.Node | None:
        return yaml.compose(self.text, Loader=SweepLoader)


def load_mapping(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Raises:
        SweepSpecError: The file is missing, is not YAML or is not a mapping.
    """
    return YamlText.of_file(path).mapping()
