"""Margins written as text: `arcface(margin=0.2, scale=16)`, `a_softmax(margin=2, blend=blend_schedule(gamma=10))`.

The text is parsed, never evaluated: only calls of this package's margins, with numbers, other margins or a
`blend_schedule` as arguments, mean anything.
"""

import ast
import typing
from collections.abc import Callable

import jax

import margin_softmax as ms


def margin_at(text: str) -> Callable[[int | jax.Array], ms.Margin]:
    """Step -> the margin that `text` names; a name alone stands for the paper's defaults.

    Raises ValueError, saying what is wrong, for a text that names no margin.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is not of the form name(argument=number, ...)") from error

    def margin(step):
        value = _value(tree, step)
        if not isinstance(value, ms.Margin):
            raise ValueError(f"{text!r} is not a margin")
        return value

    margin(0)
    return margin


def _value(node: ast.expr, step: int | jax.Array) -> float | ms.Margin:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Name(id=name):
            return _call(name, [], {})
        case ast.Call(func=ast.Name(id="blend_schedule"), args=args, keywords=keywords):
            return _call("blend_schedule", *_arguments(args, keywords, step))(step)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return _call(name, *_arguments(args, keywords, step))
    raise ValueError(f"{ast.unparse(node)!r} is neither a number nor a margin")


def _arguments(args, keywords, step):
    return [_value(arg, step) for arg in args], {keyword.arg: _value(keyword.value, step) for keyword in keywords}


def _call(name, args, keywords):
    if name not in margin_names() and name != "blend_schedule":
        raise ValueError(f"{name!r} is no margin of this package; there are {', '.join(margin_names())}")
    try:
        return getattr(ms, name)(*args, **keywords)
    except TypeError as error:
        raise ValueError(str(error)) from error


def margin_names() -> list[str]:
    """The functions of the package that make a margin."""
    public = {name: getattr(ms, name) for name in ms.__all__}
    functions = {name: value for name, value in public.items() if callable(value) and not isinstance(value, type)}
    return [name for name, function in functions.items() if typing.get_type_hints(function).get("return") is ms.Margin]
