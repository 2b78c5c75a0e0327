"""How tests read a report: as a parser does, and as a browser lays it out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


class Page(HTMLParser):
    """Tags with their attributes, and the text a reader sees."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def assert_offline(path: Path) -> None:
    """Nothing in the page is fetched from anywhere, and nothing runs."""
    page = Page(path)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert not page.all("script")
    assert not page.all("link")
    style = path.read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def widths(page: Path, width: int) -> tuple[int, int]:
    """Pixels that a page needs and gets in a frame of some width."""
    found = measured(page, width, "`${d.scrollWidth}/${d.clientWidth}`")
    needed, given = found.split("/")
    return int(needed), int(given)


def bottoms(page: Path, width: int, selector: str) -> float:
    """Where an element ends, in pixels from the top."""
    what = f"String(d.querySelector({selector!r}).getBoundingClientRect().bottom)"
    return float(measured(page, width, what))


def measured(page: Path, width: int, expression: str) -> str:
    """What a browser says of a page's document `d` in a frame of some width.

    Chromium's own windows are never narrower than about 500 pixels, so the page lies in a frame.
    """
    probe = page.with_name("probe.html")
    probe.write_text(
        f'<iframe id="f" src="{page.name}" style="width:{width}px;height:800px;border:0"></iframe>'
        "<script>f.onload=()=>{const d=f.contentDocument.documentElement;"
        f"document.title={expression}}}</script>"
    )
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--disable-quic", "--no-first-run", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={page.parent / 'profile'}"]
    ran = subprocess.run(
        [*command, probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"HOME": str(page.parent)},
    )
    found = re.search(r"<title>(.+)</title>", ran.stdout)
    assert found is not None, ran.stderr
    return found[1]
