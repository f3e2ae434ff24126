"""Documentation runs: every Python fence of every page and of the README, and every docstring's example; the programs
that pages call exist and know the options that they are given there.

The fences of a page run in order, in one namespace that holds nothing but what the page itself defines. A fence with
`>>>` prompts is a doctest: whatever it shows is compared. Any other fence is executed, and fails by raising.
"""

import contextlib
import doctest
import functools
import importlib.util
import io
import pkgutil
import re
import sys
import types
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import margin_softmax as ms

pytestmark = pytest.mark.optimised

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in [*sorted(ROOT.glob("*.md")), ROOT / "examples/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
WITHOUT_CODE: set[str] = {
    *("CHANGELOG.md", "CONTRIBUTING.md", "examples/README.md"),
    *("docs/asked_elsewhere.md", "docs/face_embedding.md"),
}
"""Pages that need no Python: what they show is made by commands. Every other page has at least one fence."""


STRICT = ("jax_enable_x64", "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion", "jax_debug_nans")
"""Settings that a page must leave as they are: the others run under them too."""


class Fence(NamedTuple):
    language: str
    line: int
    """Of the first line of its code, counted from 1."""
    source: str


OPENING = re.compile(r"^(?P<indent> *)(?P<marks>`{3,}|~{3,})\s*\{?\.?(?P<language>[\w+-]*)[^`]*$")
LIKE_PYTHON = {"py", "py3", "python3", "pycon", "python-repl", "ipython", "doctest"}
QUOTED = {"markdown", "md"}


def fences_of(text):
    """Every fence, of whatever language. What another fence shows inside itself is no fence."""
    fences, lines = [], iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        opening = OPENING.match(line)
        if not opening:
            continue
        indent, marks, code = len(opening["indent"]), opening["marks"], []
        for _, inner in lines:
            closing = inner.strip()
            if len(closing) >= len(marks) and set(closing) == {marks[0]}:
                break
            code.append(inner[min(indent, len(inner) - len(inner.lstrip())) :])
        else:
            raise ValueError(f"line {number}: this fence is never closed.")
        fences.append(Fence(opening["language"].lower(), number + 1, "".join(f"{c}\n" for c in code)))
    return fences


def python_fences_of(text):
    fences = fences_of(text)
    for fence in fences:
        prompts = re.search(r"^\s*>>> ", fence.source, re.MULTILINE)
        if fence.language in LIKE_PYTHON or (prompts and fence.language not in {"python", *QUOTED}):
            raise ValueError(f"line {fence.line}: Python under the name {fence.language!r} would never be run.")
    return [fence for fence in fences if fence.language == "python"]


class ShownDigits(doctest.OutputChecker):
    """Text must be equal, and decimal numbers must round to the digits that the example shows.

    So an example shows the digits that hold, on every machine and under every version of JAX.
    """

    NUMBER = re.compile(r"(?<![\w.])([-+]?\d+(?:\.\d*(?:e[-+]?\d+)?|e[-+]?\d+))")

    def check_output(self, want, got, optionflags):
        if super().check_output(want, got, optionflags):
            return True
        # Odd places hold the numbers. Blanks may differ, since NumPy pads numbers of different lengths.
        want, got = (self.NUMBER.split("".join(text.split())) for text in (_spaced(want), _spaced(got)))
        return want[::2] == got[::2] and all(_rounds_to(g, w) for g, w in zip(got[1::2], want[1::2], strict=True))


def _spaced(text):
    """Array items stay apart when blanks go: `[1. 2.]` as `[1.,2.]`."""
    return re.sub(r"(?<=[\w.])\s+(?=[-+\w])", ",", text)


def _rounds_to(got, want):
    shown, error = Decimal(want), abs(Decimal(got) - Decimal(want))
    if not re.search(r"\.\d", want):
        return error == 0  # `1.` is how NumPy writes a whole number, not one rounded to no decimals
    return error <= Decimal((0, (5,), shown.as_tuple().exponent - 1))


def check_examples(test):
    """Runs a doctest and raises with its report if it shows anything that is not so."""
    report = []
    runner = doctest.DocTestRunner(ShownDigits(), verbose=False)
    runner.run(test, out=report.append, clear_globs=False)
    if runner.failures:
        raise AssertionError("".join(report))


def run_page(text, name):
    """Runs all Python fences of a page, in order, in one namespace; returns how many there were."""
    fences = python_fences_of(text)
    module = types.ModuleType("page")
    before = {option: getattr(jax.config, option) for option in STRICT}
    try:
        with pytest.MonkeyPatch.context() as patch, np.printoptions():
            patch.setitem(sys.modules, module.__name__, module)  # where classes look up the names around them
            for fence in fences:
                run_fence(fence, module.__dict__, name)
    finally:
        after = {option: getattr(jax.config, option) for option in STRICT}
        for option, value in before.items():
            jax.config.update(option, value)
    assert after == before, (
        f"{name} leaves other settings than it found: {after}. Of float64, use jax.enable_x64(True)."
    )
    return len(fences)


def run_fence(fence, namespace, name):
    if not fence.source.lstrip().startswith(">>>"):
        # As many empty lines before it as in the page, so that a traceback names the page's own line.
        exec(compile("\n" * (fence.line - 1) + fence.source, name, "exec"), namespace)
        return
    for part in doctest.DocTestParser().parse(fence.source):
        if isinstance(part, str):
            assert not part.strip(), f"{name}, line {fence.line}: {part!r} has no prompt and would not run."
        else:
            assert not part.options, f"{name}, line {fence.line}: {part.source!r} switches its comparison off."
    test = doctest.DocTestParser().get_doctest(fence.source, {}, name, name, fence.line - 1)
    test.globs = namespace  # the page's own, not a copy: what an example defines, later fences have
    check_examples(test)


@pytest.mark.parametrize("name", PAGES)
def test_page(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = run_page(PAGES[name].read_text(encoding="utf-8"), str(PAGES[name]))
    assert (count == 0) == (name in WITHOUT_CODE), f"{name} has {count} Python fences; see WITHOUT_CODE."


def test_pages_without_code_exist():
    assert set(PAGES) >= WITHOUT_CODE


@pytest.mark.parametrize("name", PAGES)
def test_rows_of_tables_have_a_cell_for_every_head(name):
    text = PAGES[name].read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({row.replace("\\|", "").count("|") for row in table.splitlines()}) == 1, f"{name}:\n{table}"


@pytest.mark.parametrize("name", PAGES)
def test_names_of_the_package_exist(name):
    """Also those in prose and tables, which nothing runs."""
    text = PAGES[name].read_text(encoding="utf-8")
    for dotted in set(re.findall(r"(?<![\w.])ms\.([a-z_]\w*(?:\.[a-z_]\w*)?)", text)):
        first, _, second = dotted.partition(".")
        assert hasattr(ms, first), f"{name}: there is no ms.{first}."
        if isinstance(getattr(ms, first), types.ModuleType) and second:
            assert hasattr(getattr(ms, first), second), f"{name}: there is no ms.{dotted}."


COMMAND = re.compile(r"python (?:-m )?(?P<program>(?:examples/)?\w+\.py|faces\.\w+)(?P<rest>[^`\n]*)")


def commands_of(text):
    """What a page has to be typed that is a program of the examples, and the options that it is given there."""
    for command in COMMAND.finditer(text.replace("\\\n", " ")):
        module = command["program"].removeprefix("examples/").removesuffix(".py")
        yield module, set(re.findall(r"(?<![\w-])--[a-z][\w-]*", command["rest"]))


@functools.cache
def help_of(module):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit, match=r"^0$"):
        importlib.import_module(module).main(["--help"])
    return printed.getvalue()


@pytest.mark.parametrize("name", PAGES)
def test_commands_exist_with_their_options(name):
    for module, options in commands_of(PAGES[name].read_text(encoding="utf-8")):
        assert importlib.util.find_spec(module) is not None, f"{name}: there is no {module}."
        unknown = {option for option in options if not re.search(rf"{option}(?![\w-])", help_of(module))}
        assert not unknown, f"{name}: {module} has no {unknown}."


def test_commands_are_found_on_pages():
    text = "```bash\npython examples/a.py --one 1 \\\n  --two\n```\nand `python -m faces.b x` --no\n"
    found = list(commands_of(text))
    assert found == [("a", {"--one", "--two"}), ("faces.b", set())]
    assert sum(bool(options) for name in PAGES for _, options in commands_of(PAGES[name].read_text())) > 20


def docstring_examples():
    names = [ms.__name__, *(m.name for m in pkgutil.walk_packages(ms.__path__, "margin_softmax."))]
    for name in names:
        finder = doctest.DocTestFinder(exclude_empty=True)
        given = {"ms": ms, "jax": jax, "jnp": jnp, "np": np, "optax": optax}
        tests = finder.find(importlib.import_module(name), name, globs=given)
        yield from (test for test in tests if test.examples)


@pytest.mark.parametrize(
    "example", [pytest.param(e, id=e.name.removeprefix("margin_softmax.")) for e in docstring_examples()]
)
def test_docstring(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not any(e.options for e in example.examples), "an example switches its comparison off."
    with np.printoptions():
        check_examples(example)


def page(*fences, language="python"):
    return "\n".join(f"Some text.\n\n```{language}\n{fence}\n```\n" for fence in fences)


RIGHT = {
    "number": page(">>> 2 / 3\n0.6666666666666666"),
    "number, rounded": page(">>> 2 / 3\n0.6667"),
    "exponent": page(">>> 1.23456e-7\n1.235e-07"),
    "array": page("import numpy as np", ">>> np.array([0.25, 100.125])\narray([0.25, 100.1])"),
    "names carry on": page("a = 1", ">>> b = a + 1", ">>> b\n2", "assert b == 2"),
    "in a list": "- Some text.\n\n    ```python\n    >>> 1 + 1\n    2\n    ```\n",
    "a title": page(">>> 1 + 1\n2", language='python title="sum.py"'),
    "shown, not run": "````markdown\n```python\n>>> 1 + 1\n3\n```\n````\n",
    "another language": page("1 / 0", language="text"),
    "an error, expected": page(">>> int('x')\nTraceback (most recent call last):\n...\nValueError: "
                               "invalid literal for int() with base 10: 'x'"),
    "a class": page("import dataclasses\n@dataclasses.dataclass\nclass A:\n    a: 'int'\nassert A(1).a == 1"),
}  # fmt: skip

WRONG = {
    "number": page(">>> 2 / 3\n0.6666666666666667"),
    "last digit": page(">>> 2 / 3\n0.6666"),
    "sign": page(">>> 2 / 3\n-0.6667"),
    "exponent": page(">>> 1.23456e-7\n1.235e-06"),
    "integer": page(">>> 1 + 1\n3"),
    "one of an array": page("import numpy as np", ">>> np.array([0.25, 100.125])\narray([0.25, 100.3])"),
    "not whole": page("import numpy as np", ">>> np.array([1.0, 2.25])\narray([1., 2.])"),
    "too few": page("import numpy as np", ">>> np.array([0.25, 100.125])\narray([0.25])"),
    "two as one": page("print('1 2')", ">>> print('1 2')\n12"),
    "second fence": page(">>> 1 + 1\n2", ">>> 1 + 1\n3"),
    "nothing shown": page(">>> 1 + 1"),
    "nothing computed": page(">>> a = 2\n2"),
    "an error": page("1 / 0"),
    "a failed assertion": page("assert 1 + 1 == 3"),
    "in a list": "- Some text.\n\n    ```python\n    >>> 1 + 1\n    3\n    ```\n",
    "a title": page(">>> 1 + 1\n3", language='python title="sum.py"'),
    "a name not imported": page("np.zeros(1)"),
    "skipped": page(">>> 1 + 1  # doctest: +SKIP\n3"),
    "left open": page(">>> 2 / 3  # doctest: +ELLIPSIS\n0...."),
    "no prompt after output": page(">>> 1 + 1\n2\n\nassert False"),
    "called py": page("1 / 0", language="py"),
    "in a text fence": page(">>> 1 + 1\n3", language="text"),
    "never closed": "```python\n>>> 1 + 1\n2\n",
    "a warning": page("import warnings\nwarnings.warn('deprecated', DeprecationWarning)"),
    "mixed dtypes": page("import jax.numpy as jnp\njnp.zeros(2, jnp.int32) + jnp.zeros(2, jnp.float32)"),
    "mixed ranks": page("import jax.numpy as jnp\njnp.zeros((2, 3)) + jnp.zeros(3)"),
    "float64 left on": page("import jax\njax.config.update('jax_enable_x64', True)"),
}


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_a_right_page_passes(text):
    run_page(text, "page.md")


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_a_wrong_page_fails(text):
    with pytest.raises(Exception):  # noqa: B017, PT011 - the runner's own, or whatever the page raises
        run_page(text, "page.md")
