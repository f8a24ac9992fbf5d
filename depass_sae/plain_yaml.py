"""YAML from anywhere: only what is written out, every value once, and every mistake with its place."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from .errors import UserError
from .files import TOO_DEEP, read_text


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which builds no object of a file's choice, and refuses what it would stumble over.

    An alias of a list or a mapping can make a few lines hold more than any memory, and a key that stands twice would
    silently count once.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark if self.check_event(yaml.AliasEvent) else None
        node = super().compose_node(parent, index)
        if mark is not None and not isinstance(node, yaml.ScalarNode):
            raise ConstructorError(
                problem="lists and mappings are not repeated by an alias; write it out", problem_mark=mark
            )
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
            kind = str(node.tag).rpartition(":")[2]
            raise ConstructorError(problem=f"this cannot be read as {kind}", problem_mark=node.start_mark) from None

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        found: set[Any] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in found:
                raise ConstructorError(problem=f"{name} is there twice", problem_mark=key.start_mark)
            if name is not None:
                found.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Raises UserError with one line: where in the file, and what is wrong."""
    try:
        return yaml.load(read_text(path), PlainLoader)
    except UserError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
        what = " ".join((getattr(error, "problem", None) or str(error)).split())
        raise UserError(f"cannot read {path}: not YAML: {what}{where}") from None
    except RecursionError:
        raise UserError(f"cannot read {path}: {TOO_DEEP}") from None
