"""Base of all options: frozen pydantic models, each declared once, beside what it is of. Knows no command line.

The `Mark` of an option names its heading in help, and whether it decides the result: an option that doesn't may be
changed when a command goes on with an earlier output. Without a mark, an option is one of `HOW`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Any, NamedTuple, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo


class Mark(NamedTuple):
    """A heading of help, and whether the option decides the result."""

    group: str
    decides: bool
    is_positional: bool = False


WHAT = Mark("what", decides=True)
NAMED = Mark("what", decides=True, is_positional=True)  # given without a flag
PLACE = Mark("what", decides=False)  # a path or URI; what lies there is compared by its fingerprint
HOW = Mark("how", decides=True)
MACHINE = Mark("machine", decides=False)


class Shown(NamedTuple):
    """The placeholder of a value in help."""

    text: str


Kind = TypeVar("Kind", bound="Options")


class Options(BaseModel):
    """Options of something; unknown ones are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def resolved(self) -> dict[str, Any]:
        """All options as JSON values, as they are kept beside an output."""
        return self.model_dump(mode="json", by_alias=True)

    def part(self, kind: type[Kind], **changes: Any) -> Kind:
        """Options of another class: the values of the names that both have, and the changes."""
        shared = {name: getattr(self, name) for name in kind.model_fields if name in type(self).model_fields}
        return kind.model_validate({**shared, **changes})

    def decisive(self) -> dict[str, Any]:
        """The options that decide the result, as JSON values."""
        return self.model_dump(mode="json", by_alias=True, exclude=set(self.undecisive()))

    @classmethod
    def undecisive(cls) -> frozenset[str]:
        """Names of the options that don't decide the result."""
        return frozenset(name for name, field in cls.model_fields.items() if not mark_of(field).decides)


def mark_of(field: FieldInfo) -> Mark:
    """The mark of an option."""
    return next((each for each in field.metadata if isinstance(each, Mark)), HOW)


def leaves(annotation: Any) -> Iterator[Any]:
    """The types and `Annotated` values that an annotation is made of, outermost first."""
    yield annotation
    for each in get_args(annotation):
        yield from leaves(each)


def parse_span(text: str, *, least: int = 1) -> tuple[int, int]:
    """Fewest and most of `N` or `MIN:MAX`; `N` may be as small as `least`.

    Raises:
        ValueError: it is neither.
    """
    low, colon, high = text.partition(":")
    try:
        span = int(low), int(high if colon else low)
    except ValueError:
        raise ValueError("expected N or MIN:MAX") from None
    if not (1 if colon else least) <= span[0] <= span[1]:
        raise ValueError(f"expected 1 <= MIN <= MAX{'' if least else ', or 0'}")
    return span


def _check_span(text: str) -> str:
    parse_span(text)
    return text


def _check_span_or_none(text: str) -> str:
    parse_span(text, least=0)
    return text


Span = Annotated[str, BeforeValidator(str), AfterValidator(_check_span), Shown("N|MIN:MAX")]
SpanOrNone = Annotated[str, BeforeValidator(str), AfterValidator(_check_span_or_none), Shown("N|MIN:MAX")]  # 0 too


def parse_budget(text: str) -> int | Fraction:
    """The rows of `N`, or the share of `P%`, exactly.

    Raises:
        ValueError: it is neither.
    """
    share = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%", text)
    if share and 0 < Fraction(share[1]) <= 100:
        return Fraction(share[1]) / 100
    if re.fullmatch(r"[0-9]{1,9}", text) and int(text):
        return int(text)
    raise ValueError("expected a number greater than or equal to 1, or a share over 0% up to 100%")


def _read_budget(value: object) -> int | str:
    found = parse_budget(str(value).strip())
    return found if isinstance(found, int) else str(value).strip()


Budget = Annotated[int | str, BeforeValidator(_read_budget), Shown("N|P%")]


def as_sequence(value: object) -> object:
    """A single text as a sequence of one; anything else as it is."""
    return (value,) if isinstance(value, str) else value


def as_count(value: object) -> object:
    """The number that a text of digits is, as flags give it; anything else as it is."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


Address = Annotated[
    str | None,
    MACHINE,
    Shown("HOST:PORT"),
    Field(description="the Ray cluster; default: RAY_ADDRESS, else one is started on this machine"),
]
ImageRoot = Annotated[
    str | None,
    PLACE,
    Field(description="the folder that a table's image_uri may name files of; default: the table's own folder"),
]
Texts = Annotated[tuple[str, ...], BeforeValidator(as_sequence)]  # one or several
