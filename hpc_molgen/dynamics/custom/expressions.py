"""OpenMM's algebraic expressions, read into a small tree: never by `eval`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from hpc_molgen.errors import InputError

# The functions of OpenMM's expression language (Lepton) and their numbers of arguments. There are no constants: `pi` is
# unknown to it too.
FUNCTIONS: Mapping[str, int] = {
    **dict.fromkeys(("sqrt", "exp", "log", "erf", "erfc", "square", "cube", "recip"), 1),
    **dict.fromkeys(("sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh", "cosh", "tanh"), 1),
    **dict.fromkeys(("step", "delta", "abs", "floor", "ceil"), 1),
    **dict.fromkeys(("atan2", "min", "max"), 2),
    "select": 3,
}

_TOKEN = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[^\W\d][^\s()+\-*/^,;=<>!&|]*)"  # as in Lepton a name goes on to the next operator
    r"|(?P<mark>[()+\-*/^,])"
)


@dataclass(frozen=True)
class Number:
    """A literal."""

    value: float


@dataclass(frozen=True)
class Variable:
    """A name that the caller gives a value; `place` is its offset in the text."""

    name: str
    place: int


@dataclass(frozen=True)
class Reference:
    """An intermediate definition, by its index in `Expression.definitions`."""

    index: int


@dataclass(frozen=True)
class Call:
    """A function, or one of the operators `neg` and `^`, with its arguments."""

    name: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True)
class Chain:
    """Operators of one precedence from left to right, (+, -) or (*, /): the first operand, then pairs of sign and operand."""

    first: Node
    rest: tuple[tuple[str, Node], ...]


Node = Number | Variable | Reference | Call | Chain


def _children(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Call):
        return node.arguments
    if isinstance(node, Chain):
        return (node.first, *(operand for _, operand in node.rest))
    return ()


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes
    ----------
    text : str
        As it was given.
    root : Node
    definitions : tuple of Node
        Intermediate values; each refers to earlier ones of this tuple alone.
    """

    text: str
    root: Node
    definitions: tuple[Node, ...]

    @property
    def variables(self) -> frozenset[str]:
        """Names that the value depends on; definitions that nothing uses do not count (as in OpenMM)."""
        return frozenset(variable.name for variable in self._free())

    def require_known(self, names: Collection[str]) -> None:
        """Raise an InputError that shows the place of a variable that is not among `names`, and `names`."""
        for variable in self._free():
            if variable.name not in names:
                known = ", ".join(sorted(names)) or "none"
                _fail(f"unknown variable '{variable.name}' (known: {known})", self.text, variable.place)

    def _free(self) -> Iterator[Variable]:
        seen: set[int] = set()
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, Variable):
                yield node
            elif isinstance(node, Reference) and node.index not in seen:
                seen.add(node.index)
                waiting.append(self.definitions[node.index])
            waiting.extend(_children(node))


def parse(expression: str, functions: Mapping[str, int] | None = None) -> Expression:
    """Return the tree of an expression of OpenMM's language.

    The language: numbers, `+ - * / ^`, parentheses, the functions of `FUNCTIONS`, and definitions after semicolons
    ("a*b; a=b+1; b=2*x": each may use what is defined to its right). `^` is right associative and binds closer than a
    minus sign before it: -x^2 is -(x^2).

    Parameters
    ----------
    expression : str
    functions : mapping of str to int, optional
        Names of tabulated functions and their numbers of arguments; they hide built-in functions of the same name.

    Raises
    ------
    InputError
        For a syntax error, an unknown function or a wrong number of arguments; shows the place.
    """
    arity = {**FUNCTIONS, **(functions or {})}
    parts: list[tuple[int, int]] = []
    start = 0
    for piece in expression.split(";"):
        parts.append((start, start + len(piece)))
        start += len(piece) + 1
    definitions: list[Node] = []
    defined: dict[str, int] = {}
    for begin, end in reversed(parts[1:]):
        if not expression[begin:end].strip():
            continue
        equals = expression.find("=", begin, end)
        name = expression[begin:equals].strip() if equals >= 0 else ""
        match = _TOKEN.fullmatch(name)
        if match is None or match.lastgroup != "name":
            _fail("expected a definition 'name = ...' after the semicolon", expression, begin)
        definitions.append(_Parser(expression, equals + 1, end, defined, arity).parse())
        defined = {**defined, name: len(definitions) - 1}
    root = _Parser(expression, *parts[0], defined, arity).parse()
    return Expression(expression, root, tuple(definitions))


def _fail(problem: str, text: str, place: int) -> NoReturn:
    shown = re.sub(r"\s", " ", text)
    raise InputError(f"{problem}, at character {place + 1} of the expression\n  {shown}\n  {' ' * place}^")


class _Parser:
    """Recursive descent over one part (between semicolons) of an expression."""

    def __init__(self, text: str, begin: int, end: int, defined: Mapping[str, int], arity: Mapping[str, int]) -> None:
        self.text, self.end, self.defined, self.arity = text, end, defined, arity
        self.tokens = list(self._tokens(begin))
        self.next = 0

    def _tokens(self, place: int) -> Iterator[tuple[str, str, int]]:
        while place < self.end:
            if self.text[place].isspace():
                place += 1
                continue
            match = _TOKEN.match(self.text, place, self.end)
            if match is None:
                _fail(f"unexpected character '{self.text[place]}'", self.text, place)
            yield str(match.lastgroup), match.group(), place
            place = match.end()
        yield "end", "", self.end

    def parse(self) -> Node:
        try:
            node = self._sum()
        except RecursionError:
            _fail("too many nested operations", self.text, self.tokens[self.next][2])
        if self.tokens[self.next][0] != "end":
            self._unexpected()
        return node

    def _accept(self, *marks: str) -> str | None:
        kind, text, _ = self.tokens[self.next]
        if kind == "mark" and text in marks:
            self.next += 1
            return text
        return None

    def _unexpected(self) -> NoReturn:
        kind, text, place = self.tokens[self.next]
        _fail("unexpected end" if kind == "end" else f"unexpected '{text}'", self.text, place)

    def _sum(self) -> Node:
        first = self._product()
        rest: list[tuple[str, Node]] = []
        while sign := self._accept("+", "-"):
            rest.append((sign, self._product()))
        return Chain(first, tuple(rest)) if rest else first

    def _product(self) -> Node:
        first = self._signed()
        rest: list[tuple[str, Node]] = []
        while sign := self._accept("*", "/"):
            rest.append((sign, self._signed()))
        return Chain(first, tuple(rest)) if rest else first

    def _signed(self) -> Node:
        if self._accept("-"):
            return Call("neg", (self._signed(),))
        base = self._primary()
        return Call("^", (base, self._signed())) if self._accept("^") else base

    def _primary(self) -> Node:
        kind, text, place = self.tokens[self.next]
        if self._accept("("):
            inner = self._sum()
            self._close()
            return inner
        if kind == "number":
            self.next += 1
            return Number(float(text))
        if kind != "name":
            self._unexpected()
        self.next += 1
        if self._accept("("):
            return self._call(text, place)
        return Reference(self.defined[text]) if text in self.defined else Variable(text, place)

    def _call(self, name: str, place: int) -> Node:
        if name not in self.arity:
            _fail(f"unknown function '{name}' (known: {', '.join(sorted(self.arity))})", self.text, place)
        arguments = [self._sum()]
        while self._accept(","):
            arguments.append(self._sum())
        self._close()
        if len(arguments) != self.arity[name]:
            _fail(f"{name} takes {self.arity[name]} argument(s), not {len(arguments)}", self.text, place)
        return Call(name, tuple(arguments))

    def _close(self) -> None:
        if not self._accept(")"):
            if self.tokens[self.next][0] == "end":
                _fail("missing ')'", self.text, self.end)
            self._unexpected()
