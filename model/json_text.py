"""JSON that others wrote."""

from __future__ import annotations

import json
from typing import Any


def parse_json(data: bytes | str) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: it stands for none, or nests deeper than Python can follow.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("expected JSON, found brackets nested too deeply") from None
