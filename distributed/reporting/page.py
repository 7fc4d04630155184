"""The page of a report: template, style and script of this package in one file, under a policy that admits no other.

Texts are escaped by the template; what is marked as markup is made by `charts`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

_MARK = b'<!doctype html>\n<html lang="en" data-lossight="report">'  # how every report begins


def is_report(content: bytes) -> bool:
    """Whether a file is one of these pages."""
    return content.startswith(_MARK)


def render_page(context: dict[str, Any], data: dict[str, Any]) -> bytes:
    """The page as UTF-8.

    Args:
        context: what the template names.
        data: what the script reads, JSON values only.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_resource("page.html"))
    style, script = _resource("page.css"), _resource("page.js")
    page = template.render(
        **context,
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        style_hash=_source_hash(style.encode()),
        script_hash=_source_hash(script.encode()),
        data=_embedded(data),
    )
    return page.encode()


def _resource(name: str) -> str:
    """A file of this package."""
    return files("distributed.reporting").joinpath(name).read_text(encoding="utf-8")


def _source_hash(content: bytes) -> str:
    """How a content security policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}"


def _embedded(data: dict[str, Any]) -> Markup:
    """JSON inside a script element: without the signs that could end it, or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # noqa: S704
