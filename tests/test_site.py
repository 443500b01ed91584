"""The site builds without a warning, its links lead somewhere, and it opens in a browser.

`make site` runs this, with NEEDS_CHROMIUM=1: then what is missing is a failure. Elsewhere it is a
reason to skip: Sphinx comes with the extra `docs`, the browser with Debian's chromium and
chromium-driver.
"""

import doctest
import functools
import html.parser
import http.server
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import numpyro_neb as neb

pytestmark = [pytest.mark.slow, pytest.mark.statistical]

ROOT = Path(__file__).parent.parent
# The article, and what it lies in; what is wider than they are has to scroll by itself.
TOO_WIDE = """
const wide = [];
for (let e = document.querySelector('article') ?? document.body; e; e = e.parentElement)
  if (e.scrollWidth > innerWidth) wide.push(`${e.tagName} ${e.className}: ${e.scrollWidth}`);
return wide;
"""
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
)


def missing(what):
    reason = f"the site's tests need {what}: make site"
    if os.environ.get("NEEDS_CHROMIUM"):
        pytest.fail(reason)
    pytest.skip(reason)


def need_extra():
    """Sphinx and Selenium, which a machine with a Chromium may well lack."""
    if any(importlib.util.find_spec(name) is None for name in ("sphinx", "myst_nb", "selenium")):
        missing("the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    need_extra()
    out = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-n", "-q", "-b", "html", "-c", "docs", "-d", f"{out}/trees"]
    command = [sys.executable, "-m", "sphinx", *options, ".", f"{out}/html"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return out / "html"


class Page(html.parser.HTMLParser):
    """The anchors of a page, and what it refers to."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.fetched = {"", "top"}, [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors.update(attrs[key] for key in ("id", "name") if attrs.get(key))
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        for key in ("src", "href"):
            if tag in ("img", "script", "link", "iframe", "source") and attrs.get(key):
                self.fetched.append(attrs[key])


@pytest.fixture(scope="module")
def pages(site):
    paths = (path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts)
    return {path: Page(path) for path in paths}


def is_remote(link):
    return link.startswith(("http:", "https:", "//", "mailto:"))


def test_links_and_anchors_lead_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.fetched:
            if is_remote(link) or link.startswith("data:"):
                continue
            target, anchor = urldefrag(unquote(link).split("?")[0])
            file = (path.parent / target).resolve() if target else path
            there = file.exists() and (file not in pages or anchor in pages[file].anchors)
            if not there:
                broken.append((str(path.relative_to(site)), link))
    assert not broken


def test_nothing_is_fetched_from_elsewhere(site, pages):
    remote = [(path, link) for path, page in pages.items() for link in page.fetched
              if is_remote(link)]  # fmt: skip
    assert not remote


def test_titles_differ(site, pages):
    titles = {}
    for path in pages:
        title = re.search(r"<title>(.*?)</title>", path.read_text(), re.DOTALL)[1]
        titles.setdefault(title.strip(), []).append(str(path.relative_to(site)))
    assert [names for names in titles.values() if len(names) > 1] == []


def test_the_header_has_the_version_and_the_repository(site):
    text = (site / "docs/index.html").read_text()
    header = text[text.index("<header") : text.index("</header>")]
    assert f"numpyro_neb {neb.__version__}" in header
    urls = importlib.metadata.metadata("numpyro-neb").get_all("Project-URL") or []
    repository = [url.split(", ")[1] for url in urls if url.startswith("Repository, ")]
    assert re.findall(r'href="(https?:[^"]+)"', header) == repository


def test_formulas_of_docstrings_are_maths(site):
    text = (site / "docs/api/training.html").read_text()
    body = text[text.index('<dt class="sig sig-object py" id="numpyro_neb.sure_loss">') :]
    formula = re.search(r'<div class="formula">(.*?)</div>', body, re.DOTALL)[1]
    symbols = html.unescape("".join(re.findall(r">([^<>\s]+)<", formula)))
    minus, sigma, applied, hat = "\u2212", "\u03c3", "\u2061", "\u02c6"
    assert symbols == f"‖x{hat}(y){minus}y‖2+2{sigma}2div{applied}x{hat}(y){minus}{sigma}2d"
    # Docstrings say sigma where the name of an argument is meant, and so do their doctests.
    for path in (site / "docs/api").glob("*.html"):
        prose = re.sub(
            r"<(pre|code|dt|math|title|nav)\b.*?</\1>", "", path.read_text(), flags=re.DOTALL
        )
        words = re.sub(r"<[^>]+>", " ", prose)
        assert not re.search(r"sigma\^2|\bgrad phi|\bnorm\([xyX] ", words), path


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    need_extra()
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        missing("Debian's chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


def wait_for(browser, script, found=bool):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20).until(lambda b: found(b.execute_script(script)))


def names_of(site, pages):
    return [str(path.relative_to(site)) for path in pages]


def test_every_page_renders(browser, site, pages, address):
    for name in names_of(site, pages):
        browser.get(f"{address}/{name}")
        wait_for(browser, "return document.readyState == 'complete'")
        assert wait_for(browser, "return document.querySelector('h1')?.innerText"), name
        images = "return [...document.images].filter(i => !(i.complete && i.naturalWidth > 0))"
        assert browser.execute_script(f"{images}.map(i => i.src)") == [], name
        errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert errors == [], name


def test_pages_fit_a_phone(browser, site, pages, address):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    try:
        for name in names_of(site, pages):
            browser.get(f"{address}/{name}")
            wait_for(browser, "return document.readyState == 'complete'")
            assert browser.execute_script("return innerWidth") == PHONE["width"], name
            assert browser.execute_script(TOO_WIDE) == [], name
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_search_finds_the_kernel(browser, address):
    browser.get(f"{address}/search.html?q=WalkJumpKernel")
    results = "return [...document.querySelectorAll('#search-results a')].map(a => a.href)"
    links = wait_for(browser, results)
    wait_for(browser, results, lambda found: any("api/sampling.html#" in link for link in found))
    assert links
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_line_of_code_fits_the_column(browser, address):
    browser.get(f"{address}/docs/index.html")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    try:
        for name in ("docs/index", "docs/evaluation", "docs/api/sampling", "docs/gallery"):
            browser.get(f"{address}/{name}.html")
            wait_for(browser, "return document.readyState == 'complete'")
            blocks = "return [...document.querySelectorAll('pre')]"
            cut = f"{blocks}.filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)"
            assert browser.execute_script(cut) == [], name
            width = "return document.querySelector('article').clientWidth"
            assert browser.execute_script(width) >= 800, name
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def shown_and_copied(browser, url):
    """The first block of code of a page, and what its button copies."""
    from selenium.webdriver.common.action_chains import ActionChains

    browser.get(url)
    wait_for(browser, "return document.querySelector('.copybtn')")
    button = browser.find_element("class name", "copybtn")
    listen = "document.addEventListener('copy', e => { window.copied = e.target.value; });"
    browser.execute_script(f"window.copied = null; {listen}")
    ActionChains(browser).move_to_element(button).click(button).perform()
    wait_for(browser, "return window.copied")
    shown = "return document.querySelector('pre').innerText"
    return browser.execute_script(shown), browser.execute_script("return window.copied")


def test_copy_buttons_leave_out_prompts_and_outputs(browser, address):
    shown, copied = shown_and_copied(browser, f"{address}/docs/api/memories.html")
    assert shown.startswith(">>> ")
    assert "[ 1. -1.]" in shown
    sources = [part.source for part in doctest.DocTestParser().get_examples(shown)]
    assert copied.strip() == "".join(sources).strip()
    assert "[ 1. -1.]" not in copied
    shown, copied = shown_and_copied(browser, f"{address}/docs/index.html")
    assert copied.strip() == shown.strip()
