"""What MkDocs is told beside mkdocs.yml: pages that lie outside this folder, and formulas as MathML.

A link is written as it works in the repository, `../examples/target_logits.py`, and becomes one that works on the site.
Formulas, `$...$` and `$$...$$` as GitHub renders them, become MathML when the site is built, by latex2mathml (MIT
licence): browsers draw it without a script, in the font that assets/ has.
"""

import html
import posixpath
import re
from importlib.util import find_spec
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(find_spec("margin_softmax").origin).parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/README.md": "examples.md",
}
"""Pages outside this folder -> where they are on the site."""

WIDE = {"losses.md", "face_embedding.md", "reproduced.md"}
"""Pages whose tables are given the room of the table of contents."""

LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)(?P<path>[^)\s#]+)(?P<rest>[^)]*)(?=\))")
DIRECTIVE = re.compile(r"^(::: margin_softmax\.(\w+))$", re.MULTILINE)
CELL = re.compile(r"<td(.*?</td>)", re.DOTALL)
SOURCE = {".py": "python", ".toml": "toml", ".txt": "text", ".yml": "yaml"}
NAME = re.compile(r"<(mi|mo)>(\w{2,})</\1>(?P<bracket>(?=<mo stretchy=\"false\">&#x00028;))?")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files, config):
    """Adds the pages that lie elsewhere, and a page for every source file that one of them or another links to."""
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text(encoding="utf-8")))
    for page in list(files.documentation_pages()):
        for link in LINK.finditer(page.content_string):
            path = repository_path(page.src_uri, link["path"])
            uri = f"sources/{path}.md"
            if is_source(path) and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, content=source_page(path)))
    return files


def on_serve(server, config, builder):
    """Docstrings are pages too; the package lies here or wherever it is installed."""
    server.watch(str(PACKAGE))
    return server


def on_page_markdown(markdown, page, config, files):
    """Links into the repository become links within the site, and the name of a function no longer its module's."""
    here = page.file.src_uri
    if here in WIDE:
        page.meta["hide"] = ["toc"]

    def rewritten(link):
        path = repository_path(here, link["path"])
        return posixpath.relpath(site_uri(path), posixpath.dirname(here) or ".") + link["rest"]

    if here.startswith("sources/"):
        return markdown
    return DIRECTIVE.sub(unambiguous, LINK.sub(rewritten, markdown))


def on_page_content(content, page, config, files):
    """Formulas become MathML, and tables are given what their source cannot say."""
    content = FORMULA.sub(lambda found: mathml(found, page.file.src_uri), content)
    return CELL.sub(cell, content)


def cell(found):
    """A bar that Markdown has to escape, also within code, is a bar; a long text is no column of single words."""
    text = found[1].replace("\\|", "|")
    return f'<td class="long"{text}' if len(re.sub("<[^>]*>", "", text)) > 50 else f"<td{text}"


def unambiguous(directive):
    """`margin_softmax.sharded` is a function and the module that it stands in; Griffe takes the module."""
    is_module = (PACKAGE / f"{directive[2]}.py").is_file()
    return f"{directive[1]}.{directive[2]}" if is_module else directive[1]


def repository_path(uri, link):
    """Where in the repository a link of the site's page `uri` leads."""
    origin = {site: path for path, site in PAGES.items()}.get(uri, f"docs/{uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def site_uri(path):
    return PAGES.get(path) or (f"sources/{path}.md" if is_source(path) else posixpath.relpath(path, "docs"))


def is_source(path):
    return not path.startswith(("docs/", "..")) and Path(path).suffix in SOURCE and place_of(path).is_file()


def place_of(path):
    """Where a file of the repository lies. The package may be installed elsewhere."""
    return (PACKAGE.parent if path.startswith("margin_softmax/") else ROOT) / path


def source_page(path):
    code = place_of(path).read_text(encoding="utf-8")
    return f"---\ntitle: {path}\nsearch: {{exclude: true}}\n---\n\n````{SOURCE[Path(path).suffix]}\n{code}````\n"


def mathml(found, where):
    tex = html.unescape(found[2]).strip()
    result = convert(tex, display="block" if found[1] == "div" else "inline")
    if "\\" in result or "&" in tex:  # an ampersand aligns lines, which it does not know either
        raise PluginError(f"{where}: latex2mathml does not know all of ${tex}$.")
    result = NAME.sub(spaced, result)
    return f'<div class="formula">{result}</div>' if found[1] == "div" else result


def spaced(name):
    """cos, log and their like, with the space around them that TeX has; latex2mathml leaves it out."""
    after = "0" if name["bracket"] is not None else "0.17em"
    return f'<mo lspace="0.17em" rspace="{after}">{name[2]}</mo>'
