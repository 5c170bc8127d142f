"""Conditions on catalog columns, as in "price < 20 AND brand <> 'Acme'": text in, a mask of rows out.

The text is read twice. Here every word is checked against a short grammar, so that nothing runs that is not
listed and every fault is told with its place; then polars, whose SQL it is, computes it.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import polars as pl

from data.schema import ITEM_ID, Mask
from store.errors import BadInput


class Kind(StrEnum):
    """What a part of a condition is."""

    NUMBER = "a number"
    TEXT = "text"
    TRUTH = "a truth value"
    TIME = "a date or time"
    NULL = "null"
    OTHER = "nested"


FUNCTIONS: dict[str, tuple[tuple[Kind, ...], Kind]] = {
    "lower": ((Kind.TEXT,), Kind.TEXT),
    "upper": ((Kind.TEXT,), Kind.TEXT),
    "length": ((Kind.TEXT,), Kind.NUMBER),
    "abs": ((Kind.NUMBER,), Kind.NUMBER),
    "round": ((Kind.NUMBER,), Kind.NUMBER),
    "floor": ((Kind.NUMBER,), Kind.NUMBER),
    "ceil": ((Kind.NUMBER,), Kind.NUMBER),
    "starts_with": ((Kind.TEXT, Kind.TEXT), Kind.TRUTH),
    "ends_with": ((Kind.TEXT, Kind.TEXT), Kind.TRUTH),
}
"""Name → what it takes and gives; no other function may be called."""

DEEPEST = 20
"""Parentheses, functions, NOT and signs within each other. Python's stack would hold more, polars' parser does not
where each of them stands behind an AND."""
MOST_JOINED = 100
"""AND, OR and operators in one condition: each is a level more for polars, which takes a second for some hundreds,
and whose threads run out of stack beyond, which ends the process."""

_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<forbidden>--|/\*|;)|(?P<number>(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)"
    r"|(?P<text>'([^']|'')*')|(?P<quoted>\"([^\"]|\"\")+\")|(?P<word>[^\W\d]\w*)"
    r"|(?P<sign><=|>=|<>|!=|\|\||[=<>+\-*/%(),])",
    re.IGNORECASE,
)
_COMPARISONS = ("=", "<>", "!=", "<", "<=", ">", ">=")
_WORDS = ("AND", "OR", "NOT", "IN", "IS", "NULL", "LIKE", "ILIKE", "BETWEEN", "TRUE", "FALSE", "DATE", "TIMESTAMP")


class FilterFault(BadInput):
    """A condition that cannot be used.

    Args:
        text: the whole condition.
        place: of the fault, in characters from 0.
        what: found, expected, what to do.
        columns: columns of text that stand where something else is expected.
    """

    def __init__(self, text: str, place: int, what: str, *, columns: Sequence[str] = ()) -> None:
        super().__init__(f"filter, character {place + 1}: {what}\n  {text}\n  {' ' * place}^")
        self.columns = tuple(columns)


def filter_mask(items: pl.DataFrame, text: str, *, renamed: Mapping[str, str] | None = None) -> Mask:
    """(N,) bool by row: where a condition on the columns of `items` holds; a comparison with null does not.

    Allowed are comparisons, AND, OR, NOT, IN, BETWEEN, LIKE, ILIKE, IS NULL, arithmetic, literals, parentheses, and
    the functions of FUNCTIONS. A column of text whose values are all numbers, as CSV files have them, is one of
    numbers where it is compared with a number.

    Args:
        items: the catalog.
        text: the condition.
        renamed: column of the user's file → what it is called in `items`, for who asks by the former.

    Raises:
        BadInput: for a syntax error, an unknown column, types that cannot be compared or a function that is not
            allowed; the message shows the place.
    """
    numbers: dict[str, pl.Series] = {}
    while True:
        kinds = {name: Kind.NUMBER if name in numbers else _kind_of(dtype) for name, dtype in items.schema.items()}
        try:
            used = Condition(text, kinds, renamed or {}).columns()
            break
        except FilterFault as fault:
            new = {name: as_numbers(items[name]) for name in fault.columns if name != ITEM_ID}
            if not new or any(series is None for series in new.values()):
                raise
            numbers |= {name: series for name, series in new.items() if series is not None}
    columns = [_without_nan(numbers.get(name, items[name])) for name in used]
    frame = pl.DataFrame(columns)
    try:
        kept = frame.select(pl.sql_expr(text).fill_null(False).alias("kept"))["kept"]
    except (pl.exceptions.PolarsError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FilterFault(
            text, 0, f"it cannot be computed ({reason}); put odd column names into double quotes"
        ) from error
    return np.broadcast_to(kept.to_numpy(), (len(items),)).astype(np.bool_)


def as_numbers(column: pl.Series) -> pl.Series | None:
    """A column of text as numbers; None where a value is not one."""
    told = column.str.strip_chars()
    told = told.set(told == "", None)
    values = told.cast(pl.Float64, strict=False)
    return None if values.null_count() > told.null_count() or values.null_count() == len(values) else values


@dataclass(frozen=True)
class _Token:
    shape: str
    text: str
    place: int

    @property
    def word(self) -> str:
        """Upper case where it is a bare word or a sign, else nothing that a grammar could ask for."""
        return self.text.upper() if self.shape in ("word", "sign", "end") else ""


@dataclass(frozen=True)
class _Value:
    """A part of a condition: its kind, where it begins, the columns of text that make it up."""

    kind: Kind
    place: int
    columns: tuple[str, ...] = ()


class Condition:
    """A condition, checked word by word.

    Args:
        text: as the user wrote it.
        kinds: column → what it holds.
        renamed: column of the user's file → column.
    """

    def __init__(self, text: str, kinds: dict[str, Kind], renamed: Mapping[str, str]) -> None:
        self.text, self.kinds, self.renamed = text, kinds, renamed
        self._tokens = self._tokenised()
        self._next = self._depth = self._joints = 0
        self._used: dict[str, None] = {}

    def columns(self) -> list[str]:
        """The columns that it asks for.

        Raises:
            FilterFault: when anything in it is not allowed.
        """
        if self._now.shape == "end":
            raise self._fault(0, "it is empty; write a condition, as in price < 20")
        self._expect(self._either(), Kind.TRUTH)
        if self._now.shape != "end":
            raise self._fault(self._now.place, f"{self._now.text!r} is not expected here; AND or OR joins conditions")
        return list(self._used)

    def _tokenised(self) -> list[_Token]:
        tokens, place = [], 0
        while place < len(self.text):
            match = _TOKEN.match(self.text, place)
            if match is None or match.lastgroup is None or match.group("forbidden"):
                if self.text[place] in "'\"":
                    raise self._fault(place, "this quotation mark is not closed")
                raise self._fault(place, f"{self.text[place]!r} is not understood here")
            shape = next(name for name in match.re.groupindex if match.group(name) is not None)
            if shape != "space":
                tokens.append(_Token(shape, match.group(), place))
            place = match.end()
        return [*tokens, _Token("end", "", len(self.text))]

    @property
    def _now(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._now
        self._next += token.shape != "end"
        return token

    def _takes(self, *words: str) -> bool:
        if self._now.word not in words:
            return False
        self._take()
        return True

    def _need(self, word: str) -> None:
        if not self._takes(word):
            found = repr(self._now.text) if self._now.text else "the end"
            raise self._fault(self._now.place, f"found {found}, expected {word}")

    def _nested(self, part: Callable[[], _Value], place: int) -> _Value:
        """What `part` reads, a level deeper."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._fault(place, f"parentheses, functions, NOT and signs stand {DEEPEST} deep; use fewer")
        value = part()
        self._depth -= 1
        return value

    def _join(self) -> _Token:
        """Takes what joins two parts."""
        self._joints += 1
        if self._joints > MOST_JOINED:
            raise self._fault(
                self._now.place, f"{MOST_JOINED} AND, OR and operators are the most; give many values by IN (…)"
            )
        return self._take()

    def _either(self) -> _Value:
        return self._joined("OR", self._both)

    def _both(self) -> _Value:
        return self._joined("AND", self._negated)

    def _joined(self, word: str, part: Callable[[], _Value]) -> _Value:
        value = part()
        while self._now.word == word:
            self._expect(value, Kind.TRUTH)
            self._join()
            value = self._expect(part(), Kind.TRUTH)
        return value

    def _negated(self) -> _Value:
        place = self._now.place
        if not self._takes("NOT"):
            return self._compared()
        self._expect(self._nested(self._negated, place), Kind.TRUTH)
        return _Value(Kind.TRUTH, place)

    def _compared(self) -> _Value:
        left = self._sum()
        truth = _Value(Kind.TRUTH, left.place)
        if self._now.word in _COMPARISONS:
            self._take()
            self._same(left, self._sum())
            return truth
        if self._takes("IS"):
            self._takes("NOT")
            self._need("NULL")
            return truth
        negated = self._takes("NOT")
        if self._takes("BETWEEN"):
            self._same(left, self._sum())
            self._need("AND")
            self._same(left, self._sum())
            return truth
        if self._takes("LIKE", "ILIKE"):
            self._expect(left, Kind.TEXT)
            self._expect(self._literal(), Kind.TEXT)
            return truth
        if self._takes("IN"):
            self._need("(")
            self._same(left, self._literal())
            while self._takes(","):
                self._same(left, self._literal())
            self._need(")")
            return truth
        if negated:
            raise self._fault(self._now.place, "expected BETWEEN, LIKE or IN after NOT")
        return left

    def _sum(self) -> _Value:
        value = self._product()
        while self._now.word in ("+", "-", "||"):
            kind = Kind.TEXT if self._join().word == "||" else Kind.NUMBER
            value = self._expect(value, kind)
            self._expect(self._product(), kind)
        return value

    def _product(self) -> _Value:
        value = self._signed()
        while self._now.word in ("*", "/", "%"):
            self._join()
            value = self._expect(value, Kind.NUMBER)
            self._expect(self._signed(), Kind.NUMBER)
        return value

    def _signed(self) -> _Value:
        place = self._now.place
        return self._expect(self._nested(self._signed, place), Kind.NUMBER) if self._takes("-", "+") else self._atom()

    def _literal(self) -> _Value:
        place = self._now.place
        negative = self._takes("-", "+")
        if self._now.shape not in ("number", "text") and self._now.word not in ("TRUE", "FALSE", "NULL", "DATE"):
            raise self._fault(self._now.place, "expected a value: a number, or text in single quotes")
        value = self._atom()
        return self._expect(value, Kind.NUMBER) if negative else _Value(value.kind, place)

    def _atom(self) -> _Value:
        token = self._take()
        if token.shape == "number":
            return _Value(Kind.NUMBER, token.place)
        if token.shape == "text":
            return _Value(Kind.TEXT, token.place)
        if token.word == "(":
            value = self._nested(self._either, token.place)
            self._need(")")
            return value
        if token.word in ("TRUE", "FALSE"):
            return _Value(Kind.TRUTH, token.place)
        if token.word == "NULL":
            return _Value(Kind.NULL, token.place)
        if token.word in ("DATE", "TIMESTAMP") and self._now.shape == "text":
            self._take()
            return _Value(Kind.TIME, token.place)
        if token.shape == "word" and self._now.word == "(":
            return self._called(token)
        if token.shape == "quoted" or (token.shape == "word" and token.word not in _WORDS):
            return self._column(token)
        found = f"{token.text!r} is" if token.text else "it ends"
        raise self._fault(token.place, f"{found} where a column or a value is expected")

    def _called(self, name: _Token) -> _Value:
        signature = FUNCTIONS.get(name.text.lower())
        if signature is None:
            raise self._fault(name.place, f"the function {name.text} is not allowed; these are: {', '.join(FUNCTIONS)}")
        self._need("(")
        for number, kind in enumerate(signature[0]):
            if number:
                self._need(",")
            self._expect(self._nested(self._sum, name.place), kind)
        self._need(")")
        return _Value(signature[1], name.place)

    def _column(self, token: _Token) -> _Value:
        name = token.text[1:-1].replace('""', '"') if token.shape == "quoted" else token.text
        if name not in self.kinds:
            near = difflib.get_close_matches(name, self.kinds, n=1, cutoff=0.5)
            known = f"the nearest known one is {near[0]!r}" if near else f"known are {', '.join(self.kinds)}"
            if self.renamed.get(name) in self.kinds:
                known = f"it was mapped and is called {self.renamed[name]!r} here"
            hint = "; text stands in single quotes" if token.shape == "quoted" else ""
            raise self._fault(token.place, f"unknown column {name!r}; {known}{hint}")
        self._used[name] = None
        kind = self.kinds[name]
        return _Value(kind, token.place, (name,) if kind is Kind.TEXT else ())

    def _expect(self, value: _Value, kind: Kind) -> _Value:
        """The value, which must be of that kind or null."""
        if value.kind not in (kind, Kind.NULL):
            what = f"this is {value.kind}, expected {kind}"
            if kind is Kind.TRUTH:
                what += ": compare it with something"
            raise self._fault(value.place, what, columns=value.columns if kind is Kind.NUMBER else ())
        return value

    def _same(self, left: _Value, right: _Value) -> None:
        kinds = {left.kind, right.kind} - {Kind.NULL}
        if Kind.OTHER in kinds:
            raise self._fault(left.place, "a column of nested values cannot be compared")
        if len(kinds) > 1:
            columns = (*left.columns, *right.columns) if Kind.NUMBER in kinds else ()
            hint = "; a date is written DATE '2026-01-31'" if Kind.TIME in kinds else ""
            raise self._fault(right.place, f"this is {right.kind}, compared with {left.kind}{hint}", columns=columns)

    def _fault(self, place: int, what: str, *, columns: Sequence[str] = ()) -> FilterFault:
        return FilterFault(self.text, place, what, columns=columns)


def _kind_of(dtype: pl.DataType) -> Kind:
    if dtype.is_numeric():
        return Kind.NUMBER
    if dtype.is_temporal():
        return Kind.TIME
    return {pl.String: Kind.TEXT, pl.Boolean: Kind.TRUTH}.get(type(dtype), Kind.OTHER)


def _without_nan(column: pl.Series) -> pl.Series:
    """Not-a-number is as good as null: polars would put it above every number."""
    return column.fill_nan(None) if column.dtype.is_float() else column
