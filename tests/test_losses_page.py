"""The page of every loss: its tables hold what the code has, so that neither a row nor a number can go stale."""

import ast
import functools
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_softmax as ms

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
FACES = (ROOT / "docs" / "face_embedding.md").read_text(encoding="utf-8")
DIGITS = (ROOT / "docs" / "reproduced.md").read_text(encoding="utf-8")

CLASS_TABLES = {name for name in ms.__all__ if name.endswith("_margins")} | {"logit_adjustment"}
CONSTRUCTORS = {
    name
    for name in ms.__all__
    if inspect.isfunction(getattr(ms, name)) and inspect.signature(getattr(ms, name)).return_annotation is ms.Margin
}

FIELD = (
    *("softmax", "temperature", "modified softmax", "NormFace", "COCO", "L-Softmax", "A-Softmax", "SphereFace+"),
    *(
        "SphereFace-R",
        "SphereFace2",
        "AM-Softmax",
        "CosFace",
        "ArcFace",
        "combined",
        "Li-ArcFace",
        "Sub-center ArcFace",
    ),
    *("CurricularFace", "MV-Softmax", "ArcNegFace", "NPCFace", "AdaFace", "MagFace", "ElasticFace-Arc"),
    *("ElasticFace-Cos", "AdaCos", "Dyn-Arc", "AdaptiveFace", "KappaFace", "LDAM", "LDAM-DRW", "logit adjustment"),
    *("Circle", "P2SGrad", "UniFace", "SFace", "virtual softmax", "CIFP", "inter-top-k", "VPL", "QAFace"),
)
"""What the literature calls a margin softmax loss, or near it: each is in a row of a table of the page."""


def tables_of(text):
    """Every table, as the section that it stands in, its header and its rows of cells."""
    section, tables, ahead = "", [], None
    for line in text.splitlines():
        if line.startswith("## "):
            section = line[3:]
        if not line.startswith("|"):
            ahead = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if ahead is None:
            ahead = (section, cells, [])
            tables.append(ahead)
        elif not set("".join(cells)) <= set("-: "):
            ahead[2].append(cells)
    return tables


TABLES = tables_of(PAGE)


def column(section, name):
    """A column of the tables of a section, by the name in the column `here`."""
    found = {}
    for where, header, rows in TABLES:
        if where == section and "here" in header and name in header:
            for row in rows:
                (key,) = re.findall(r"`ms\.(\w+)`", row[header.index("here")])
                assert key not in found, key
                found[key] = row[header.index(name)]
    return found


def lines_of(function):
    """Lines of code of a public function, with those of the private functions of its module that serve it alone.

    A line counts if it is neither blank, nor a comment alone, nor of a docstring. A private function (`_name`) serves
    those public functions of the module that reach it: whose body names it, or names a private one that reaches it.
    """
    path = inspect.getsourcefile(function)
    sources, functions, names = _module(path)
    reached = {name: _reached(name, names) for name in functions if not name.startswith("_")}
    alone = reached.pop(function.__name__).difference(*reached.values())
    return sum(_code_lines(functions[name], sources) for name in {function.__name__, *alone})


@functools.cache
def _module(path):
    source = pathlib.Path(path).read_text(encoding="utf-8")
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    names = {
        name: {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and n.id.startswith("_") and n.id in functions}
        for name, node in functions.items()
    }
    return source.splitlines(), functions, names


def _reached(name, names):
    found, ahead = set(), set(names[name])
    while ahead:
        one = ahead.pop()
        found.add(one)
        ahead |= names[one] - found
    return found


def _code_lines(node, lines):
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    numbers = set(range(first, node.end_lineno + 1))
    if ast.get_docstring(node):
        numbers -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(bool(lines[n - 1].strip()) and not lines[n - 1].lstrip().startswith("#") for n in numbers)


def parameters_of(text):
    """Name, kind and default of every parameter of a signature as the page writes it."""
    source = "" if text == "none" else re.fullmatch(r"`(.+)`", text)[1]
    arguments = ast.parse(f"def f({source}): pass").body[0].args
    assert [arguments.vararg, arguments.kwarg, *arguments.posonlyargs] == [None, None]
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + arguments.defaults
    for argument, default in zip(arguments.args, defaults, strict=True):
        yield argument.arg, inspect.Parameter.POSITIONAL_OR_KEYWORD, default
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield argument.arg, inspect.Parameter.KEYWORD_ONLY, default


def same(one, other):
    """Equal, and of one type; a margin by its functions and numbers."""
    parts = [(type(value), jax.tree.structure(value), jax.tree.leaves(value)) for value in (one, other)]
    return parts[0] == parts[1]


EMPTY = inspect.Parameter.empty
SECTIONS = {"Formulas": "arguments and defaults", "Cost, state and size": "lines"}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_row_for_every_loss(section):
    assert set(column(section, SECTIONS[section])) == CONSTRUCTORS | CLASS_TABLES
    assert not CONSTRUCTORS & CLASS_TABLES


def test_arguments_and_defaults():
    for name, text in column("Formulas", "arguments and defaults").items():
        actual = inspect.signature(getattr(ms, name)).parameters.values()
        shown = list(parameters_of(text))
        assert [row[:2] for row in shown] == [(p.name, p.kind) for p in actual], name
        for (argument, _, default), parameter in zip(shown, actual, strict=True):
            code = None if default is None else compile(ast.Expression(default), name, "eval")
            value = EMPTY if code is None else eval(code, {"ms": ms})
            assert same(value, parameter.default), f"{name}: {argument}={parameter.default!r}"


def test_lines():
    shown = column("Cost, state and size", "lines")
    counted = {name: str(lines_of(getattr(ms, name))) for name in shown}
    stale = {name: f"{shown[name]} on the page, {counted[name]} now" for name in shown if shown[name] != counted[name]}
    assert stale == {}


KEY = np.array([0, 0], np.uint32)
GIVEN = {
    "temperature": (2.0,),
    "normface": (16.0,),
    "adacos": (10,),
    "combined": (1.0, 0.3, 0.2),
    "curricularface": (0.0,),
    "cifp": (0.5,),
    "sphereface2": (1.0,),
    "unified_cross_entropy": (1.0,),
    "adaface": (ms.AdaFaceState(),),
    "elastic_arcface": (KEY, 2),
    "elastic_cosface": (KEY, 2),
    "adaptive_face": (jnp.full(3, 0.4), jnp.array([0, 2])),
    "kappaface": (jnp.full(3, 0.4), jnp.array([0, 2])),
}
OF_A_MARGIN = {"straight_through", "focal", "interclass_filter"}


def test_passes():
    """A second one for what a margin must know of the other classes before its target."""
    shown = column("Cost, state and size", "passes")
    expected = dict.fromkeys(CLASS_TABLES, "0") | dict.fromkeys(OF_A_MARGIN, "as `margin`")
    for name in CONSTRUCTORS - OF_A_MARGIN:
        expected[name] = "1" if getattr(ms, name)(*GIVEN.get(name, ())).statistic is None else "2"
    assert shown == expected
    for name in OF_A_MARGIN:
        margin = ms.intertopk()
        assert getattr(ms, name)(margin).statistic is margin.statistic


def test_every_function_of_state_is_named():
    named = " ".join(column("Cost, state and size", "state").values())
    assert {"cifp_threshold", *(n for n in ms.__all__ if n.startswith("update_"))} <= set(
        re.findall(r"ms\.(\w+)", named)
    )


def test_other_names_are_of_rows_of_the_page():
    (table,) = [rows for where, header, rows in TABLES if where == "Names elsewhere" and header[0] == "here"]
    compared = {re.fullmatch(r"`ms\.(\w+)`", row[0])[1] for row in table}
    rest = re.search(r"No other implementation was compared of (.*?)\.\n\n", PAGE, re.DOTALL)[1]
    rest = set(re.findall(r"`ms\.(\w+)`", rest))
    assert not compared & rest
    assert compared | rest == CONSTRUCTORS | CLASS_TABLES


def test_every_name_of_the_page_is_public():
    assert set(re.findall(r"\bms\.(\w+)", PAGE)) <= set(ms.__all__)


def first_cells(*sections):
    return [row[0] for where, header, rows in TABLES if where in sections and header[0] == "loss" for row in rows]


def test_every_loss_of_the_field_has_a_row():
    rows = first_cells("Formulas", "Here under another name", "Not here, and why")
    named = {name.strip() for row in rows for name in row.split(",")}
    assert set(FIELD) - named == set()


def test_what_is_not_here_is_not_here():
    names = first_cells("Not here, and why")
    assert len(names) >= 3
    for name in names:
        assert not {re.sub(r"\W+", sep, name.lower()) for sep in ("_", "")} & set(dir(ms)), name


def test_what_is_here_under_another_name_has_no_name():
    for row in first_cells("Here under another name"):
        for name in row.split(","):
            assert not {re.sub(r"\W+", sep, name.strip().lower()) for sep in ("_", "")} & set(ms.__all__), name


def our_own(page):
    measured = [row for where, _, rows in TABLES if where == "When it helps" for row in rows if "[ours]" in row[2]]
    assert {re.search(r"\((\w+)\.md", row[2])[1] for row in measured} == {"face_embedding", "reproduced"}
    return [(what, figures) for what, figures, by in measured if f"({page}.md" in by]


def test_our_own_measurements_of_faces_are_those_of_their_page():
    for what, measured in our_own("face_embedding"):
        name = re.search(r"`ms\.(\w+)`", what)[1]
        difference = measured.rpartition(": ")[2]
        lines = [line for line in FACES.splitlines() if f"`{name}(" in line and line.startswith("|")]
        assert any(f"| {difference} |" in line for line in lines), what


def test_our_own_measurements_of_digits_are_those_of_their_page():
    """A row has the first column of a table there, without a margin and with m = 2, 3, 4."""
    measured = {tuple(map(float, re.findall(r"\d+\.\d+", figures))) for _, figures in our_own("reproduced")}
    first = [
        float(line.split("|")[2].split("±")[0])
        for line in DIGITS.splitlines()
        if re.match(r"\| (softmax|L-Softmax, m = \d) \| .* ± ", line)
    ]
    assert len(first) == 8
    assert measured == {tuple(first[4:]), tuple(round(value, 1) for value in first[:4])}


ONE_LOSS = '''
def loss(a=1):
    """Docstring
    of two lines."""
    # comment

    return _alone(a) + _shared(a)  # counted


def _alone(a):
    return _below(
        a
    )


def _below(a):
    return _shared(a)


def _shared(a):
    return a


def another(a):
    return _shared(a)
'''


def test_the_count_of_lines(tmp_path):
    path = tmp_path / "one_loss.py"
    path.write_text(ONE_LOSS)
    namespace = {}
    exec(compile(ONE_LOSS, str(path), "exec"), namespace)
    assert lines_of(namespace["loss"]) == 2 + 4 + 2
    assert lines_of(namespace["another"]) == 2
