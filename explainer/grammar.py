"""The text form of predicates: the one grammar of the command line, the page, steering conditions and selections.

    predicate   = conjunction { "or" conjunction }
    conjunction = unit { "and" unit }
    unit        = clause | "(" predicate ")"
    clause      = quantity comparison value | quantity [ "not" ] "in" "(" text { "," text } ")"
    quantity    = name | name "[-" steps "]" | "change" "(" name "," steps ")"
    comparison  = ">" | ">=" | "<" | "<=" | "==" | "!="
    value       = number | text
    text        = name | '"' any text '"'
    name        = letter or "_", then letters, digits, "_" and ".", then any "[" index "]"; or anything in `backquotes`

    pole_angle > 0.1 and f41 > 0.8
    pole_angle[-5] > 0                      what it was 5 steps earlier
    change(pole_angle, 10) > 0.1            now minus 10 steps earlier
    obs[3] > 0 and obs[3][-1] <= 0          an index counts from 0, a lag is negative
    steps_to_end < 100 and episode_terminated > 0
    topic == physics or topic == "rocket science"
    token in (heat, fuel, ",") and token[-1] == the     a text's token, and the one before it

`and` binds more tightly than `or`. At most four clauses; and-groups joined by or, or or-groups joined by and, no
deeper. Printing a predicate and parsing the text gives the same predicate back.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import NoReturn

from pydantic import ValidationError

from interlatent_live.explainer.predicate import MAX_CLAUSES, MAX_STEPS, Clause, Comparison, Join, Predicate
from interlatent_live.explainer.table import Vocabulary
from interlatent_live.stream.errors import PredicateError, UnknownName

__all__ = ["parse", "print_name", "to_text"]

_MAX_TEXT = 5000
_MAX_DEPTH = 8
_WORDS = ("and", "or", "not", "change")
_NAME = re.compile(r"[^\W\d][\w.]*(?:\[\d+\])*")
_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))"
    rf"|(?P<name>{_NAME.pattern})"
    r"|(?P<quoted>`[^`]*`)"
    r'|(?P<text>"(?:[^"\\]|\\.)*")'
    r"|(?P<mark>>=|<=|==|!=|[><()\[\],])"
)
_COMPARISONS: dict[str, Comparison] = {">": ">", ">=": ">=", "<": "<", "<=": "<=", "==": "==", "!=": "!="}
_HINTS = {
    "=": "write == for equality", "&": "write and", "|": "write or", "!": "write != for inequality",
    "≥": "write >=", "≤": "write <=", "≠": "write !=", "'": 'put text in double quotes',
}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int

    @property
    def shown(self) -> str:
        return self.text if self.kind == "end" else repr(self.text)


@dataclass(frozen=True, slots=True)
class _Joined:
    """Two or more parts joined by one word; parts joined by the same word are merged into their parent."""

    word: Join
    parts: tuple[Clause | _Joined, ...]


def parse(text: str, vocabulary: Vocabulary | None = None) -> Predicate:
    """The predicate that `text` says. PredicateError gives the position of what is wrong; with a vocabulary, names are
    looked up too, and UnknownName lists close ones.
    """
    return _Parser(text, vocabulary).predicate()


def to_text(predicate: Predicate) -> str:
    """The text form, canonical: `parse` gives the same predicate back."""
    inner = " and " if predicate.join == "or" else " or "
    parts = [inner.join(_clause_text(c) for c in group) for group in predicate.groups]
    if predicate.join == "and":
        parts = [f"({p})" if len(group) > 1 else p for p, group in zip(parts, predicate.groups, strict=True)]
    return f" {predicate.join} ".join(parts)


def print_name(name: str) -> str:
    """`name` as it stands in a predicate: in backquotes where it would read as something else."""
    return name if _NAME.fullmatch(name) and name.lower() not in _WORDS else f"`{name}`"


def print_number(value: float) -> str:
    """The shortest decimal that reads back as the same number."""
    text = repr(float(value))
    return text[:-2] if text.endswith(".0") else text


def _clause_text(clause: Clause) -> str:
    name = print_name(clause.metric)
    if clause.lag:
        name = f"{name}[-{clause.lag}]"
    elif clause.change:
        name = f"change({name}, {clause.change})"
    texts = [t if _NAME.fullmatch(t) and t.lower() not in _WORDS else json.dumps(t, ensure_ascii=False) for t in clause.texts]
    value = f"({', '.join(texts)})" if isinstance(clause.value, tuple) else texts[0] if texts else print_number(clause.number)
    return f"{name} {clause.comparison} {value}"


class _Parser:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str, vocabulary: Vocabulary | None) -> None:
        self._text = text
        self._vocabulary = vocabulary
        self._clauses = 0
        self._depth = 0
        if len(text) > _MAX_TEXT:
            self._fail(f"a predicate has at most {_MAX_TEXT} characters; this one has {len(text)}", _MAX_TEXT)
        self._tokens = self._scan()
        self._next = 0

    def predicate(self) -> Predicate:
        tree = self._disjunction()
        token = self._peek()
        if token.kind != "end":
            if token.text in _COMPARISONS:
                self._fail("one comparison a clause: write x > 0 and x < 1 instead of 0 < x < 1", token.position)
            self._fail(f"expected and, or, or the end, not {token.shown}", token.position)
        join, groups = self._levels(tree)
        return Predicate(join=join, groups=groups)

    def _scan(self) -> list[_Token]:
        tokens, at = [], 0
        while at < len(self._text):
            match = _TOKEN.match(self._text, at)
            if match is None:
                character = self._text[at]
                if character in '`"':
                    self._fail(f"the {character} is not closed", at)
                hint = _HINTS.get(character)
                digits = "numbers look like 3, -0.5 or 1e-3" if character.isdigit() or character in "+-." else hint
                self._fail(f"unexpected {character!r}" + (f"; {digits}" if digits else ""), at)
            kind = str(match.lastgroup)
            if kind != "space":
                word = kind == "name" and match[0].lower() in _WORDS
                tokens.append(_Token(match[0].lower() if word else kind, match[0], at))
            at = match.end()
        tokens.append(_Token("end", "the end", len(self._text)))
        return tokens

    def _fail(self, message: str, position: int) -> NoReturn:
        raise PredicateError(f"{message} (character {position + 1})", position=position, text=self._text)

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, kind: str, what: str, text: str | None = None) -> _Token:
        token = self._peek()
        if token.kind != kind or (text is not None and token.text != text):
            self._fail(f"expected {what}, not {token.shown}", token.position)
        self._next += 1
        return token

    def _accept(self, kind: str, text: str | None = None) -> bool:
        token = self._peek()
        if token.kind != kind or (text is not None and token.text != text):
            return False
        self._next += 1
        return True

    def _disjunction(self) -> Clause | _Joined:
        parts = [self._conjunction()]
        while self._accept("or"):
            parts.append(self._conjunction())
        return _joined("or", parts)

    def _conjunction(self) -> Clause | _Joined:
        parts = [self._unit()]
        while self._accept("and"):
            parts.append(self._unit())
        return _joined("and", parts)

    def _unit(self) -> Clause | _Joined:
        token = self._peek()
        if token.kind == "not":
            self._fail("there is no not: turn the comparison round, as in x <= 0 for not x > 0", token.position)
        if not self._accept("mark", "("):
            return self._clause()
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self._fail(f"parentheses nest at most {_MAX_DEPTH} deep", token.position)
        tree = self._disjunction()
        self._take("mark", "')'", ")")
        self._depth -= 1
        return tree

    def _clause(self) -> Clause:
        begin = self._peek().position
        self._clauses += 1
        if self._clauses > MAX_CLAUSES:
            self._fail(f"a predicate has at most {MAX_CLAUSES} clauses", begin)
        lag = change = 0
        if self._accept("change"):
            self._take("mark", "'(' after change", "(")
            metric = self._name()
            self._take("mark", "',' and a number of steps, as in change(x, 10)", ",")
            change = self._steps(positive=True)
            self._take("mark", "')'", ")")
        else:
            metric = self._name()
            if self._accept("mark", "["):
                lag = self._steps(positive=False)
                self._take("mark", "']'", "]")
        comparison = self._comparison()
        at = self._peek().position
        value = self._texts() if comparison in ("in", "not in") else self._value()
        try:
            clause = Clause(metric=metric, comparison=comparison, value=value, lag=lag, change=change)
            if self._vocabulary is not None:
                clause.check(self._vocabulary)
        except ValidationError as error:
            self._fail(str(error.errors()[0]["msg"]).removeprefix("Value error, "), at)
        except UnknownName:
            raise
        except PredicateError as error:
            self._fail(str(error), at)
        return clause

    def _comparison(self) -> Comparison:
        token = self._peek()
        self._next += 1
        if token.kind == "mark" and token.text in _COMPARISONS:
            return _COMPARISONS[token.text]
        if token.kind == "name" and token.text.lower() == "in":
            return "in"
        if token.kind != "not" or self._peek().text.lower() != "in":
            self._fail(f"expected a comparison (> >= < <= == != in), not {token.shown}", token.position)
        self._next += 1
        return "not in"

    def _texts(self) -> tuple[str, ...]:
        """Values in parentheses."""
        self._take("mark", "'(' and texts, as in token in (heat, fuel)", "(")
        found: list[str] = []
        while not found or self._accept("mark", ","):
            at = self._peek().position
            value = self._value()
            if not isinstance(value, str):
                self._fail('a number is no label: put it in double quotes, as in ("3", "4")', at)
            found.append(value)
        self._take("mark", "',' or ')'", ")")
        return tuple(found)

    def _name(self) -> str:
        token = self._peek()
        if token.kind == "quoted":
            name = token.text[1:-1]
            if not 0 < len(name) <= 128 or any(ord(c) < 32 or ord(c) == 127 for c in name):
                self._fail("a name in backquotes has 1 to 128 characters, all printable", token.position)
        elif token.kind == "name":
            name = token.text
            if len(name) > 128:
                self._fail("a name has at most 128 characters", token.position)
        elif token.kind in ("number", "text"):
            self._fail("a clause begins with a name, as in pole_angle > 0.1", token.position)
        else:
            self._fail(f"expected a name, not {token.shown}", token.position)
        self._next += 1
        if self._vocabulary is not None:
            try:
                self._vocabulary.kind(name)
            except UnknownName as error:
                raise UnknownName(
                    f"{error} (character {token.position + 1})", close=error.close, position=token.position,
                    text=self._text,
                ) from None
        return name

    def _steps(self, *, positive: bool) -> int:
        what = "a number of steps, as in change(x, 10)" if positive else "a lag of steps, as in x[-5]"
        token = self._take("number", what)
        digits = token.text if positive else token.text.removeprefix("-")
        if not digits.isdecimal() or (not positive and digits == token.text):
            self._fail(f"expected {what}, not {token.shown}", token.position)
        if not 1 <= int(digits[:9]) <= MAX_STEPS or len(digits) > 9:
            self._fail(f"steps go from 1 to {MAX_STEPS}, not {digits[:12]}", token.position)
        return int(digits)

    def _value(self) -> float | str:
        token = self._peek()
        if token.kind not in ("number", "text", "name"):
            self._fail(f"expected a number or a label, not {token.shown}", token.position)
        self._next += 1
        if token.kind == "number":
            return float(token.text)
        if token.kind == "name":
            if self._peek().text in ("(", "["):
                self._fail("a clause compares with a constant, not with another quantity", token.position)
            return token.text
        try:
            text = str(json.loads(token.text))
        except json.JSONDecodeError:
            self._fail("text in double quotes follows the rules of JSON", token.position)
        if not 0 < len(text) <= 128 or any(ord(c) < 32 or ord(c) == 127 for c in text):
            self._fail("a label has 1 to 128 characters, all printable", token.position)
        return text

    def _levels(self, tree: Clause | _Joined) -> tuple[Join, tuple[tuple[Clause, ...], ...]]:
        if isinstance(tree, Clause):
            return "or", ((tree,),)
        groups: list[tuple[Clause, ...]] = []
        for part in tree.parts:
            if isinstance(part, Clause):
                groups.append((part,))
                continue
            inner = tuple(p for p in part.parts if isinstance(p, Clause))
            if len(inner) < len(part.parts):
                self._fail("nests too deeply: join and-groups by or, or or-groups by and, no deeper", 0)
            groups.append(inner)
        return tree.word, tuple(groups)


def _joined(word: Join, parts: list[Clause | _Joined]) -> Clause | _Joined:
    if len(parts) == 1:
        return parts[0]
    flat: list[Clause | _Joined] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, _Joined) and part.word == word else (part,))
    return _Joined(word, tuple(flat))
