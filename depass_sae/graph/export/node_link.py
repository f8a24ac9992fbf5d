"""Feature-flow graphs as JSON, in networkx's node-link form (see ``depass_sae.graph.document``).

The text is pure ASCII: control characters and lone surrogates in tokens come back as they were.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ..document import document_of, graph_of

if TYPE_CHECKING:
    import networkx as nx


def to_json(g: nx.DiGraph) -> str:
    """A graph as a JSON text. Raises UserError for a value that JSON cannot hold."""
    return json.dumps(document_of(g), indent=1, allow_nan=False)


def from_json(text: str) -> nx.DiGraph:
    """The graph of a JSON text. Raises UserError with one line for one that is broken or does not hold together."""
    return graph_of(parse(text))


def parse(text: str) -> Any:
    """JSON as the standard has it: no NaN. Raises UserError."""
    try:
        return json.loads(text, parse_constant=_no_such_number)
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise UserError("not a feature-flow graph: the JSON is nested too deeply") from None
    except UserError:
        raise
    except ValueError:  # Python converts no whole number of thousands of digits
        raise UserError("not a feature-flow graph: it holds a number of too many digits") from None


def _no_such_number(name: str) -> None:
    raise UserError(f"not JSON: it holds {name}, and numbers must be finite")
