"""The public surface and the shape of the package: who imports whom, what is named where, what the docs list."""

import ast
import importlib.metadata
import inspect
import pathlib
import re
import sys

import pytest

import margin_softmax as ms

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = pathlib.Path(ms.__file__).parent


def module_name(path):
    """`verification.rates`, within the package; a folder's `__init__` is the folder."""
    *folders, stem = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(folders if folders and stem == "__init__" else [*folders, stem])


SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}

MAY_IMPORT = {
    "_checks": set(),
    "_meshes": set(),
    "reductions": set(),
    "angles": {"_checks", "_meshes"},
    "schedules": {"_checks"},
    "heads": {"_checks", "reductions"},
    "sharded": {"heads"},
    "margins": {"_checks", "angles", "reductions"},
    "other_classes": {"_checks", "angles", "reductions", "margins"},
    "one_vs_all": {"_checks", "angles", "reductions", "margins"},
    "adaptive": {"_checks", "_meshes", "angles", "margins"},
    "scales": {"_checks", "margins"},
    "cross_entropy": {"_checks", "angles", "reductions"},
    "regularizers": {"_checks", "_meshes", "angles"},
    "sub_centers": {"_checks", "_meshes", "angles"},
    "growth": {"_checks", "angles"},
    "sampling": {"_checks", "_meshes", "heads", "sharded"},
    "lazy_rows": {"_checks", "heads", "sampling"},
    "losses": {"_checks", "_meshes", "angles", "reductions", "heads", "margins"},
    "states": {"_checks", "_meshes", "angles", "reductions", "heads", "losses", "margins", "adaptive"},
    "verification._inputs": {"_checks", "angles"},
    "verification.rates": {"_checks", "verification._inputs"},
    "verification.pairs": {"_checks", "angles", "verification._inputs", "verification.rates"},
    "verification.ranking": {"_checks", "angles", "verification._inputs"},
    "verification.templates": {"_checks", "angles", "verification._inputs"},
    "verification": {f"verification.{part}" for part in ("rates", "pairs", "ranking", "templates")},
    "plots._drawing": {"_checks", "verification._inputs"},
    "plots.margins": {"_checks", "losses", "margins", "plots._drawing", "verification._inputs"},
    "plots.scores": {"_checks", "plots._drawing", "verification.rates"},
    "plots.features": {"_checks", "plots._drawing", "verification._inputs"},
    "plots.sheets": {"_checks", "plots._drawing", "verification._inputs", "verification.rates"},
    "plots": {f"plots.{part}" for part in ("margins", "scores", "features", "sheets")},
}
"""Each module of the package with those it may import. A new module states its place here."""
THIRD_PARTY = {"jax", "jaxlib", "optax", "chex", "numpy"}
DRAWN_WITH = {"matplotlib"}
"""Of an extra: the modules of `plots` alone may import it."""
KNOW_NO_LOSS = ("heads", "sharded", "reductions")
OF_MARGINS = ("margins", "other_classes", "one_vs_all", "adaptive", "scales")
OF_LOSSES = (*OF_MARGINS, "losses", "states", "cross_entropy", "schedules", "regularizers")


def imports_of(source):
    """Every module that a source imports, at any depth of it, as dotted names; `.x` of the package as its full name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "margin_softmax" if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            # `from margin_softmax import heads` and `from margin_softmax.heads import Head` are the same import.
            ours = base.partition(".")[0] == "margin_softmax"
            yield from (f"{base}.{alias.name}" for alias in node.names) if ours else [base]


def module_of(name, modules):
    """The module that a dotted name within the package is of: `heads` of `heads.Head`."""
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in modules), parts[0] or "__init__")


def words_of(source):
    """Every identifier and every string in the code, without imports of the package, docstrings and comments."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.FunctionDef, ast.ClassDef)
    docstrings = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, documented) and ast.get_docstring(n)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from re.findall(r"\w+", node.value)
        for field in ("id", "attr", "arg", "name", "asname"):
            word = getattr(node, field, None)
            if isinstance(word, str):
                yield from word.split(".")


def faults_of(sources, public):
    """What breaks the design: imports against its direction, cycles, strangers, and heads that know a loss."""
    faults, inside = [], {}
    for module, source in sources.items():
        inside[module] = set()
        third_party = THIRD_PARTY | (DRAWN_WITH if module.partition(".")[0] == "plots" else set())
        for name in imports_of(source):
            top, _, rest = name.partition(".")
            if top == "margin_softmax":
                inside[module].add(module_of(rest, sources))
            elif top not in third_party | sys.stdlib_module_names:
                faults.append(f"{module} imports {top}")
        if module == "__init__":
            continue
        if module not in MAY_IMPORT:
            faults.append(f"{module} has no place")
            continue
        faults += [f"{module} imports {other}" for other in sorted(inside[module] - MAY_IMPORT[module])]
        if {"importlib", "__import__"} & set(words_of(source)):
            faults.append(f"{module} imports by name")
        if module in KNOW_NO_LOSS:
            words = set(words_of(source)) - {"margin_softmax"}
            faults += [f"{module} names {word}" for word in sorted(words) if word in public or "margin" in word.lower()]
    for module in inside:
        seen, ahead = set(), set(inside[module])
        while ahead:
            one = ahead.pop()
            seen.add(one)
            ahead |= inside.get(one, set()) - seen
        if module in seen:
            faults.append(f"{module} reaches itself")
        apart = [(a, "heads") for a in OF_MARGINS] + [("heads", b) for b in OF_MARGINS]
        faults += [f"{a} reaches {b}" for a, b in apart if module == a and b in seen]
    return faults


def names_from(modules):
    return {name for name in ms.__all__ if getattr(ms, name).__module__.split(".")[-1] in modules}


def test_imports_go_one_way_and_heads_know_no_loss():
    assert faults_of(SOURCES, names_from(OF_LOSSES)) == []


def test_the_plan_of_imports_has_no_cycle_and_no_module_too_many():
    assert set(SOURCES) == set(MAY_IMPORT) | {"__init__"}
    order = []
    while len(order) < len(MAY_IMPORT):
        free = [m for m in MAY_IMPORT if m not in order and MAY_IMPORT[m] <= set(order)]
        assert free
        order += free


BROKEN = {
    "margins imports heads": ("margins", "from margin_softmax import heads"),
    "margins reaches heads": ("angles", "import margin_softmax.heads"),
    "heads imports margins": ("heads", "from margin_softmax.margins import Margin as M"),
    "adaptive reaches heads": ("adaptive", "from margin_softmax import losses"),
    "heads reaches margins": ("reductions", "def f():\n    from . import margins"),
    "reductions imports _checks": ("reductions", "from ._checks import number"),
    "_checks reaches itself": ("_checks", "if True:\n    from margin_softmax import angles"),
    "losses imports torch": ("losses", "import torch.nn"),
    "losses imports matplotlib": ("losses", "from matplotlib import pyplot"),
    "angles imports scipy": ("angles", "from scipy.special import softmax"),
    "heads imports __init__": ("heads", "import margin_softmax"),
    "schedules imports by name": ("schedules", "import importlib"),
    "heads names arcface": ("heads", "def f(kind):\n    return kind == 'arcface'"),
    "heads names cosface": ("heads", "import x_of_y as _\n_.cosface()"),
    "reductions names margin_loss": ("reductions", "margin_loss = 1"),
    "heads names has_margin": ("heads", "def f(has_margin):\n    return has_margin"),
    "more has no place": ("more", "import jax"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_tree_is_found_out(fault):
    module, line = BROKEN[fault]
    broken = SOURCES | {module: f"{SOURCES.get(module, '')}\n{line}\n"}
    assert fault in faults_of(broken, names_from(OF_LOSSES))


def test_what_is_not_code_may_name_a_loss():
    """Docstrings and comments of heads show losses."""
    assert "margin_loss" in SOURCES["heads"]
    harmless = SOURCES["heads"] + '\n# arcface\ndef f():\n    """As in arcface."""\n'
    assert faults_of(SOURCES | {"heads": harmless}, names_from(OF_LOSSES)) == []


def test_every_public_name_is_listed_once_and_is_ours():
    assert len(set(ms.__all__)) == len(ms.__all__)
    for name in ms.__all__:
        assert getattr(ms, name).__module__.startswith("margin_softmax.")
    public = {name for name, value in vars(ms).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(ms.__all__)


PUBLIC = {name: getattr(ms, name) for name in ms.__all__} | {
    f"{module}.{name}": getattr(getattr(ms, module), name)
    for module in ("verification", "plots")
    for name in getattr(ms, module).__all__
}


def test_what_modules_offer_is_theirs():
    for module in (ms.verification, ms.plots):
        assert len(set(module.__all__)) == len(module.__all__)
        assert all(getattr(module, name).__module__.startswith(module.__name__) for name in module.__all__)


def test_the_reference_lists_every_public_name_under_a_heading_with_a_sentence():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: margin_softmax\.([\w.]+)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(PUBLIC)
    assert text.count(":::") == len(listed)
    _, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    for section in sections:
        heading, _, body = section.partition("\n")
        sentence = body.partition(":::")[0].strip()
        assert sentence.endswith("."), heading
        assert "margin_softmax." in body, heading


def sections_of(documented):
    """A docstring in the style of Google: its first line, and the text of each section."""
    text = inspect.getdoc(documented) or ""
    parts = re.split(r"^(Args|Returns|Raises|References|Example|Attributes):\n", text, flags=re.MULTILINE)
    return text, dict(zip(parts[1::2], parts[2::2], strict=True))


def entries_of(section):
    return re.findall(r"^  (\w+): ", section, re.MULTILINE)


def docstring_faults(documented, *, of_a_paper=False):
    """What a docstring lacks: a summary, its arguments, what it returns, refuses and cites, an example that runs."""
    text, sections = sections_of(documented)
    lines, faults = text.splitlines() or [""], []
    if not (lines[0].endswith((".", ":")) and len(lines[0]) <= 116 and (len(lines) == 1 or not lines[1])):
        faults.append("summary")
    if inspect.isclass(documented):
        fields = getattr(documented, "_fields", ())
        if entries_of(sections.get("Attributes", "")) != list(fields):
            faults.append("Attributes")
        return faults
    signature = inspect.signature(documented)
    if entries_of(sections.get("Args", "")) != list(signature.parameters):
        faults.append("Args")
    if ("Returns" in sections) == (signature.return_annotation is None):
        faults.append("Returns")
    errors = entries_of(sections.get("Raises", ""))
    allowed = {"TypeError", "ValueError"} | ({"ImportError"} if "ax" in signature.parameters else set())
    if bool(errors) != bool(signature.parameters) or set(errors) - allowed:
        faults.append("Raises")
    if ">>> " not in sections.get("Example", ""):
        faults.append("Example")
    cited = sections.get("References", "")
    if (of_a_paper or "References" in sections) and not (re.search(r"\b(19|20)\d\d\b", cited) or "margin" in cited):
        faults.append("References")
    return faults


NO_PAPERS = ("plain", "AdaFaceState")


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_are_complete(name):
    documented = PUBLIC[name]
    of_a_paper = documented.__module__.removeprefix("margin_softmax.") in OF_MARGINS and name not in NO_PAPERS
    assert docstring_faults(documented, of_a_paper=of_a_paper) == []


def test_methods_that_a_head_must_have_are_documented():
    for name in ("num_classes", "place", "own", "others"):
        assert inspect.getdoc(getattr(ms.Head, name)).endswith(".")


def complete(x, y) -> float:
    """Adds.

    Args:
      x: one.
      y: other.

    Returns:
      Their sum.

    Raises:
      TypeError: they are not numbers.

    References:
      Euclid, 1956.

    Example:
      >>> complete(1, 1)
      2
    """
    return x + y


INCOMPLETE = {
    "summary": ("Adds.", "Adds two\nnumbers."),
    "Args": ("  y: other.\n", ""),
    "Returns": ("Returns:\n  Their sum.\n", ""),
    "Raises": ("TypeError", "Error"),
    "Example": (">>> ", ""),
    "References": ("1956", "long ago"),
}


@pytest.mark.parametrize("fault", INCOMPLETE)
def test_an_incomplete_docstring_is_found_out(fault):
    def broken(x, y) -> float:
        return x + y

    right = broken.__doc__ = inspect.getdoc(complete)
    assert docstring_faults(broken, of_a_paper=True) == []
    old, new = INCOMPLETE[fault]
    assert old in right
    broken.__doc__ = right.replace(old, new)
    assert docstring_faults(broken, of_a_paper=True) == [fault]


def test_the_version_is_that_of_the_installed_package():
    """Where it is installed; from the source tree there is nothing that could differ."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", ms.__version__)
    installed = {d.version for d in importlib.metadata.distributions(name="margin-softmax")}
    assert installed <= {ms.__version__}


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()
