"""The site: built strictly, whole without a network, and opened in a browser, where the page that computes is checked.

`mkdocs serve` shows what is built here.
"""

import contextlib
import functools
import http.server
import json
import math
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import margin_softmax as ms
from browser import Chromium, program

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {"README.md": "index", "CHANGELOG.md": "changelog", "CONTRIBUTING.md": "contributing"}
PAGES = {*OUTSIDE.values(), "examples", *(p.relative_to(ROOT / "docs").stem for p in (ROOT / "docs").glob("*.md"))}
ELSEWHERE = re.compile(r"^([a-z][a-z+.-]*:)?//|^[a-z][a-z+.-]*:", re.IGNORECASE)
FETCHED = {"stylesheet", "icon", "shortcut icon", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch"}


class Page(HTMLParser):
    """What a page fetches, where it leads, which anchors it has, and what it is made of."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.links, self.anchors, self.formulas = [], [], set(), 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        self.formulas += tag == "math"
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in FETCHED:
            self.fetched.append(given["href"])
        elif tag != "a":
            self.fetched += [given[name] for name in ("src", "data", "poster", "action") if given.get(name)]
            self.fetched += [one.split()[0] for one in given.get("srcset", "").split(",") if one.strip()]
        self.fetched += urls_of_css(given.get("style") or "")


def urls_of_css(text):
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    named = re.findall(r"""url\(\s*(?:"([^"]*)"|'([^']*)'|([^)"']*))\s*\)|@import\s+["']([^"']+)""", text)
    return [url for url in map("".join, named) if not url.startswith("data:")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; that it builds without a warning is checked here.

    Not `--quiet`, which keeps warnings from being counted.
    """
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    if run.returncode:
        pytest.fail(f"{' '.join(command[1:])}, of the extra `docs`:\n{run.stdout}{run.stderr}", pytrace=False)
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def beside(name, link):
    """The site's path that a relative link on page `name` leads to, and its anchor."""
    path, anchor = urldefrag(unquote(link))
    return os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name, anchor


def test_every_page_is_on_the_site_and_in_its_navigation(site, pages):
    assert {name.removesuffix(".html") for name in pages if not name.startswith(("sources/", "404"))} == PAGES
    navigation = re.search(
        r'<nav class="md-nav md-nav--primary.*?</nav>\s*</div>', (site / "index.html").read_text(), re.S
    )
    assert {beside("index.html", link)[0] for link in Page(navigation[0]).links} >= {f"{page}.html" for page in PAGES}


def test_nothing_comes_from_another_host(site, pages):
    sheets = {path.relative_to(site).as_posix(): path for path in site.rglob("*.css")}
    wanted = {name: page.fetched for name, page in pages.items() if name != "404.html"}
    wanted |= {name: urls_of_css(path.read_text(encoding="utf-8")) for name, path in sheets.items()}
    assert sum(map(len, wanted.values())) > 5 * len(pages)
    for name, urls in wanted.items():
        for url in urls:
            assert not ELSEWHERE.match(url), f"{name} fetches {url}"
            path = beside(name, url.partition("?")[0])[0]
            assert (site / path).is_file(), f"{name} fetches {url}, which is not there"


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://a.b/c.js">',
        '<link rel="stylesheet" href="//a.b/c.css">',
        '<img srcset="x.png 1x, http://a.b/c 2x">',
        '<p style="background: url(https://a.b/c.png)">',
        '<iframe src="https://a.b">',
    ],
)
def test_another_host_would_be_seen(text):
    assert any(ELSEWHERE.match(url) for url in Page(text).fetched)


def test_every_link_and_anchor_leads_somewhere(pages, site):
    count = 0
    for name, page in pages.items():
        for link in page.links:
            if ELSEWHERE.match(link) or name == "404.html":
                continue
            path, anchor = beside(name, link)
            path = "index.html" if path == "." else path
            assert (site / path).is_file(), f"{name}: {link}"
            assert not anchor or anchor in pages[path].anchors or anchor == "__top", f"{name}: {link}"
            count += 1
    assert count > 20 * len(PAGES)


def test_every_documented_name_has_its_signature(site):
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE)
    html = (site / "api.html").read_text(encoding="utf-8")
    for name in names:
        short = name.rpartition(".")[2]
        entry = re.search(rf'<h3 id="{re.escape(name)}(\.{short})?".*?(?=<h[23] |\Z)', html, re.DOTALL)
        assert entry, f"{name} has no heading"
        assert "doc-signature" in entry[0] or "doc-class" in entry[0], f"{name} has no signature"
    assert "Example:" not in html  # it would be text, and its code no code


def test_every_formula_is_mathml(pages, site):
    """Counted in the page's source, where a formula stands between dollars and outside of code."""
    for page in PAGES - {"index", "examples", "changelog", "contributing"}:
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        text = re.sub(r"^( *)(`{3,}).*?^ *\2|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
        formulas = len(re.findall(r"\$\$.+?\$\$|\$[^$\s](?:[^$\n]*[^$\s])?\$(?!\d)", text, re.DOTALL))
        html = (site / f"{page}.html").read_text(encoding="utf-8")
        assert pages[f"{page}.html"].formulas == formulas, page
        assert "arithmatex" not in html, page
    assert pages["margins_by_hand.html"].formulas > 5


@pytest.fixture(scope="module")
def server(site):
    """The address of the site, on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if program() is None:
        pytest.skip("no Chromium is installed")
    with contextlib.closing(Chromium(tmp_path_factory.mktemp("browser"))) as opened:
        yield opened


FORMULAS = """[...document.querySelectorAll('math')].filter((math) => {
    const box = math.getBoundingClientRect();
    return box.width < 4 || box.height < 4 || math.querySelector('merror');
}).length"""


@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
def test_every_page_opens(browser, server, pages, width):
    """Without a complaint, without another host, all formulas drawn, and no wider than the screen."""
    for name in sorted(pages):
        if name == "404.html":
            continue
        browser.open(f"{server}/{name}", width=width, height=800)
        assert browser.errors == [], name
        assert browser.requests, name
        assert all(url.startswith((server, "data:")) for url in browser.requests), name
        assert browser.run(FORMULAS) == 0, name
        assert browser.run("document.documentElement.scrollWidth") <= width, name


HITS = """new Promise((done) => {
    const search = document.querySelector('[data-md-component=search-query]');
    const hits = () => [...document.querySelectorAll('.md-search-result__item')].map((hit) => hit.textContent);
    search.focus();
    search.value = 'CurricularFace';
    search.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true}));
    search.dispatchEvent(new InputEvent('input', {bubbles: true}));
    const wait = () => hits().length ? done(hits().join()) : setTimeout(wait, 20);
    wait();
})"""


def test_it_is_whole_in_a_folder_too(browser, site):
    """Without any server: the search finds, the drawings are drawn."""
    browser.open((site / "margins_by_hand.html").as_uri())
    assert browser.run("document.querySelectorAll('#by-hand figure path').length") > 8
    assert "CurricularFace" in browser.run(HITS)
    assert browser.errors == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in browser.requests)


DRAWN = """Object.fromEntries([...document.querySelectorAll('#by-hand figure')].map((figure) => [
    figure.querySelector('strong').textContent,
    [...figure.querySelectorAll('.by-hand-own')].map((path) => path.getAttribute('d')).join() +
        figure.querySelector('.by-hand-dot').getAttribute('cx')]))"""
LOGIT, SLOPE, LOSS, BOUNDARY = "Logit of the own class", "Its slope", "Loss", "Boundary of two classes"
MOVES = {
    "m1": {LOGIT, SLOPE, LOSS, BOUNDARY},
    "m2": {LOGIT, SLOPE, LOSS, BOUNDARY},
    "m3": {LOGIT, LOSS, BOUNDARY},
    "s": {LOSS},
    "classes": {LOSS},
    "theta": {LOGIT, SLOPE, LOSS, BOUNDARY},
}


def test_the_keyboard_moves_every_slider_and_its_curves(browser, server):
    browser.open(f"{server}/margins_by_hand.html")
    for name, moved in MOVES.items():
        slider = f"document.getElementById('by-hand-{name}')"
        before, said = browser.run(DRAWN), browser.run(f"{slider}.getAttribute('aria-valuetext')")
        browser.run(f"{slider}.focus()")
        for _ in range(3):
            browser.press("ArrowRight", 39)
        after = browser.run(DRAWN)
        assert {figure for figure in after if after[figure] != before[figure]} == moved, name
        shown = browser.run(f"{slider}.parentElement.querySelector('output').value")
        assert shown == browser.run(f"{slider}.getAttribute('aria-valuetext')") != said
    assert browser.run("document.activeElement.id") == "by-hand-theta"
    unnamed = "[...document.querySelectorAll('#by-hand :is(input, select)')].filter((c) => !c.labels.length).length"
    assert browser.run(unnamed) == 0
    assert browser.errors == []


CONTRAST = """(() => {
    const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
        .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const light = (colour) => { const [r, g, b] = channels(colour); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const page = light(getComputedStyle(document.body).backgroundColor);
    const contrast = (one, other) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const lines = [...document.querySelectorAll('.by-hand-comparisons line')].map((line) => getComputedStyle(line));
    return {
        scheme: document.body.getAttribute('data-md-color-scheme'),
        ratios: lines.map(({stroke}) => contrast(light(stroke), page)),
        looks: new Set(lines.map(({stroke, strokeDasharray}) => stroke + strokeDasharray)).size,
        dashes: new Set(lines.map(({strokeDasharray}) => strokeDasharray)).size,
    };
})()"""


@pytest.mark.parametrize(("wanted", "scheme"), [("light", "default"), ("dark", "slate")])
def test_lines_stand_out_by_day_and_by_night(browser, server, wanted, scheme):
    """3:1 from the page, as the accessibility guidelines ask of drawings; and apart without their colours."""
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": wanted}])
    browser.open(f"{server}/margins_by_hand.html")
    browser.run("localStorage.clear()")  # where an earlier choice is kept
    browser.open(f"{server}/margins_by_hand.html")
    seen = browser.run(CONTRAST)
    assert seen["scheme"] == scheme
    assert len(seen["ratios"]) == 8
    assert min(seen["ratios"]) > 3.0
    assert seen["looks"] == 8
    assert seen["dashes"] == 7  # yours and softmax have none: one is thick


THETAS = np.linspace(0.02, 3.1, 45)


@functools.partial(jax.jit, static_argnames="classes")
def package(thetas, margin, length, classes):
    """Own logits, their slopes and the losses: the own class along the first axis, all others along the third."""
    labels = jnp.zeros(len(thetas), jnp.int32)
    weights = jnp.zeros((classes, 3)).at[:, 2].set(1.0).at[0].set(jnp.array([1.0, 0.0, 0.0]))

    def features(thetas):
        return length * jnp.stack([jnp.cos(thetas), jnp.sin(thetas), jnp.zeros_like(thetas)], axis=1)

    def logits(thetas):
        return ms.margin_logits(features(thetas), weights[:1], labels, margin)[:, 0]

    slopes = jax.grad(lambda thetas: logits(thetas).sum())(thetas)
    return logits(thetas), slopes, ms.margin_loss(features(thetas), weights, labels, margin, head=ms.dense())


def package_at(thetas, margin, length, classes):
    """The same in float64, `[3, B]`; always for as many angles as THETAS, so that it compiles once."""
    thetas = np.broadcast_to(thetas, THETAS.shape)
    with jax.enable_x64(True):
        return np.stack(package(jnp.asarray(thetas), margin, jnp.asarray(float(length)), classes))


def check_values(page, margin, length, classes):
    """A page's rows of values at THETAS, against the package's."""
    logit, slope, loss = package_at(THETAS, margin, length, classes)
    np.testing.assert_allclose([row["logit"] for row in page], logit, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose([row["slope"] for row in page], slope, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose([row["loss"] for row in page], loss, rtol=1e-7, atol=1e-12)


def on_the_page(browser, margin):
    return browser.run(f"{THETAS.tolist()}.map((theta) => marginSoftmax.values({json.dumps(margin)}, theta))")


def test_the_papers_margins_are_the_packages(browser, server):
    browser.open(f"{server}/margins_by_hand.html")
    published = browser.run("marginSoftmax.published")
    assert len(published) == 8
    for entry in published:
        scale, classes = entry.get("s", 20.0), 2
        margin = eval(entry["code"], {"ms": ms})
        assert entry.get("s", 1.0) == margin.scale
        page = on_the_page(browser, entry | {"s": scale, "classes": classes})
        check_values(page, margin, 1.0 if "s" in entry else scale, classes)


CHOICES = [
    {"m1": 1.0, "m2": 0.5, "m3": 0.0, "s": 64, "classes": 1000},
    {"m1": 0.9, "m2": 0.4, "m3": 0.15, "s": 64, "classes": 2},
    {"m1": 1.35, "m2": 1.2, "m3": 1.0, "s": 1, "classes": 2},
    {"m1": 4.0, "m2": 1.2, "m3": 1.0, "s": 128, "classes": 1000},
    {"m1": 0.5, "m2": 0.0, "m3": 0.35, "s": 30, "classes": 2},
]


def test_every_other_margin_is_the_packages(browser, server):
    browser.open(f"{server}/margins_by_hand.html")
    for choice in CHOICES:
        page = on_the_page(browser, choice)
        margin = ms.combined(choice["m1"], choice["m2"], choice["m3"], scale=choice["s"])
        check_values(page, margin, 1.0, choice["classes"])
        check_boundary(page, margin)
        check_halfway(page[0]["halfway"], margin, choice["classes"])


def check_boundary(page, margin):
    """A class at the angle that the page gives has the own class's logit; without one, even a class at pi has more."""
    beyond = np.array([math.nan if row["boundary"] is None else row["boundary"] for row in page])
    with jax.enable_x64(True):
        zero, own, other = jnp.zeros(len(page)), jnp.asarray(THETAS), jnp.asarray(np.nan_to_num(beyond, nan=math.pi))
        rows = [[jnp.cos(own), jnp.sin(own), zero], [jnp.cos(other), zero, jnp.sin(other)]]
        weights = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=1)
        feature, label = jnp.eye(1, 3), jnp.array([0])
        z = np.asarray(jax.vmap(lambda w: ms.margin_logits(feature, w, label, margin)[0])(weights))
    found = ~np.isnan(beyond)
    np.testing.assert_allclose(z[found, 0], z[found, 1], rtol=1e-9, atol=1e-7)
    assert (z[~found, 0] < z[~found, 1]).all()


def check_halfway(angle, margin, classes):
    """There the loss is log 2; where there is none, it is larger even at the angle 0."""
    loss = package_at(0.0 if angle is None else angle, margin, 1.0, classes)[2, 0]
    assert loss == pytest.approx(math.log(2), rel=1e-9) if angle is not None else loss > math.log(2)


TABLE = """[...document.querySelectorAll('#by-hand table tbody tr')].map((row) =>
    [...row.cells].map((cell) => cell.textContent.trim().replaceAll('\\u2212', '-')))"""


def test_the_table_shows_the_values_of_the_sliders(browser, server):
    browser.open(f"{server}/margins_by_hand.html")
    # A starting point is chosen as by a reader, one more paper is compared, and the classes become fewer.
    browser.run("""(() => {
        const select = document.getElementById('by-hand-start');
        select.value = [...select.options].find(({text}) => text === 'combined').value;
        select.dispatchEvent(new Event('input', {bubbles: true}));
        document.getElementById('by-hand-compare-5').click();
        document.getElementById('by-hand-classes').focus();
    })()""")
    for _ in range(3):
        browser.press("ArrowLeft", 37)
    assert browser.run("document.getElementById('by-hand-classes').ariaValueText") == "1,000"
    rows = {row[0]: row[1:] for row in browser.run(TABLE)}
    assert list(rows) == ["yours", "ArcFace", "AM-Softmax, CosFace", "L-, A-Softmax, m = 4", "softmax"]
    code = browser.run("document.getElementById('by-hand-code').textContent")
    assert code == "ms.combined(1, 0.3, 0.2, scale=64)"
    for name, margin in {"yours": eval(code, {"ms": ms}), "ArcFace": ms.arcface(0.5, scale=64.0)}.items():
        logit, slope, loss, beyond, halfway = (float(shown.removesuffix("°")) for shown in rows[name])
        assert [logit, slope] == pytest.approx(package_at(math.pi / 4, margin, 1.0, 1000)[:2, 0], abs=6e-4)
        assert loss == pytest.approx(package_at(math.pi / 4, margin, 1.0, 1000)[2, 0], rel=6e-3)
        assert beyond == pytest.approx(math.degrees(math.acos(logit / 64)), abs=0.06)
        # The angle has one decimal, and the loss the slope of its logit there, halved.
        near = package_at(math.radians(halfway), margin, 1.0, 1000)[2, 0]
        assert near == pytest.approx(math.log(2), abs=64 * math.radians(0.05))
