"""Margins written as text: `arcface(margin=0.2, scale=16)`, `a_softmax(margin=2, blend=blend_schedule(gamma=10))`.

The text is parsed, never evaluated: only calls of this package's functions below, with constants or each other as
arguments, mean anything. What a function requires and training alone can say is left out, and is no position among
its arguments: `adaface(0.3, 16)`, `ldam_margins()`. Of that, this module fills in what is known before the first step;
a call that requires more is a `Later`, which `margin_state` completes in the step.
"""

import ast
import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import margin_softmax as ms

# A schedule stands for its value at the step, a table by class for the values of the batch's labels, and an update for
# the state that it carries, if any.
SCHEDULES = "blend_schedule", "annealing", "margin_warmup"
TABLES = "ldam_margins", "frequency_margins", "kappaface_margins"
UPDATES = "update_curricularface", "update_adaface", "update_adacos", "update_kappaface", "cifp_threshold"
# What stands for these arguments where they are left out.
BY_UPDATE = dict(t=UPDATES[0], state=UPDATES[1], memory=UPDATES[3], threshold=UPDATES[4])
OBSERVED = "angle", "norm"


class Known(NamedTuple):
    """What training knows before its first step, under the names of the arguments that it is.

    Attributes:
      num_classes: C.
      batch: B.
      counts: pictures of each class, [C].
    """

    num_classes: int
    batch: int
    counts: np.ndarray


SUPPLIED = {*Known._fields, *BY_UPDATE, "key", "labels", "bias", "margins"}
# By name alone; the others are arrays, of which a text knows none.
WRITABLE = {*BY_UPDATE, "bias", "num_classes", "margins"}


@jax.tree_util.register_pytree_node_class
class Later:
    """A call that waits for the batch. Its numbers are leaves; the constants that shape a program are structure."""

    def __init__(self, name: str, arguments: dict[str, Any]):
        self.name, self.arguments = name, arguments

    def calls(self) -> Iterator["Later"]:
        """Itself and those among its arguments."""
        yield self
        for argument in self.arguments.values():
            if isinstance(argument, Later):
                yield from argument.calls()

    def tree_flatten(self):
        shaping = {key: value for key, value in self.arguments.items() if type(value) in (bool, int, str, tuple)}
        numbers = {key: value for key, value in self.arguments.items() if key not in shaping}
        return (numbers,), (self.name, tuple(shaping.items()))

    @classmethod
    def tree_unflatten(cls, structure, children):
        name, shaping = structure
        return cls(name, {**children[0], **dict(shaping)})


def margin_at(text: str, known: Known) -> Callable[[int], Any]:
    """Step -> what `text` means: a margin, or a `Later` that becomes one; a name alone is the paper's defaults.

    Raises ValueError for a text that is no expression; `margin_state.trial` refuses all that is no margin.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is not of the form name(argument=number, ...)") from error
    return lambda step: _value(tree, known, step)


def _value(node: ast.expr, known: Known, step: int) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as constant):
            return constant
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Tuple(elts=elements) if all(isinstance(e, ast.Constant | ast.UnaryOp) for e in elements):
            return tuple(_value(element, known, step) for element in elements)
        case ast.Name(id=name):
            return _call(name, [], {}, known, step)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            given = {str(keyword.arg): _value(keyword.value, known, step) for keyword in keywords}
            return _call(name, [_value(arg, known, step) for arg in args], given, known, step)
        case ast.Attribute(value=ast.Call(func=ast.Name(id="observe"), args=[], keywords=[]), attr=attribute):
            if attribute in OBSERVED:
                return Later("observe", {"attribute": attribute})
    raise ValueError(f"{ast.unparse(node)!r} is neither a number nor a margin")


def _call(name: str, args: list[Any], given: dict[str, Any], known: Known, step: int) -> Any:
    if name not in (*margin_names(), *SCHEDULES, *TABLES, *UPDATES):
        raise ValueError(f"{name!r} is no margin of this package; there are {', '.join(margin_names())}")
    function, supplied = getattr(ms, name), _supplied(name)
    written = {argument: given.pop(argument) for argument in supplied if argument in given and argument in WRITABLE}
    if name == "kappaface":
        written = {"margins": _call("kappaface_margins", [], {}, known, step)} | written
    if isinstance(written.get("margins"), Later):  # the one argument that is a table itself
        written["margins"] = written["margins"].arguments["table"]
    # As if what is supplied were no parameter: so it is neither asked for nor counted among the positions.
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in supplied]
    try:
        arguments = inspect.Signature(parameters).bind(*args, **given).arguments
        if name in UPDATES:
            return Later(name, arguments)
        arguments |= {argument: _supply(argument, known) for argument in supplied} | written
        waits = any(isinstance(value, Later) for value in arguments.values())
        value: Any = Later(name, arguments) if waits else function(**arguments)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
    if name in SCHEDULES:
        return value(step)
    return Later("looked_up", {"table": value}) if name in TABLES else value


def _supplied(name: str) -> list[str]:
    """The arguments of a function that training supplies: of an update all that it requires, of others by name."""
    parameters = inspect.signature(getattr(ms, name)).parameters.values()
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    return required if name in UPDATES else [n for n in required if n in SUPPLIED]


def _supply(argument: str, known: Known) -> Any:
    if argument in Known._fields:
        return getattr(known, argument)
    return Later(BY_UPDATE.get(argument, argument), {})


@functools.cache
def margin_names() -> tuple[str, ...]:
    """The functions of the package that make a margin."""
    public = {name: getattr(ms, name) for name in ms.__all__}
    functions = {name: value for name, value in public.items() if callable(value) and not isinstance(value, type)}
    return tuple(n for n, function in functions.items() if typing.get_type_hints(function).get("return") is ms.Margin)
