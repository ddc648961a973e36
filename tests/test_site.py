"""The site of the pages (`make docs`, which also follows every link): nothing is left out of it."""

from __future__ import annotations

import inspect
import re

import localsgd
from pages import PAGES, ROOT, program

NAVIGATION = re.findall(
    r"^ +- (?:.*: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2], re.M
)
REFERENCE = {
    page.removeprefix("reference/").removesuffix(".md")
    for page in NAVIGATION
    if page.startswith("reference/")
}


def test_the_navigation_has_every_page_once() -> None:
    assert len(NAVIGATION) == len(set(NAVIGATION))
    pages = {"index.md" if page.stem == "README" else page.name for page in PAGES}
    assert pages <= set(NAVIGATION)


def test_the_navigation_names_what_is_there() -> None:
    """In docs/ or, for what the hook takes along, at that place of the repository."""
    made = {"index.md", *(f"reference/{module}.md" for module in REFERENCE)}
    for page in set(NAVIGATION) - made:
        assert (ROOT / "docs" / page).is_file() or (ROOT / page).is_file(), page


def test_whatever_pages_import_from_has_a_reference_page() -> None:
    for page in PAGES:
        for module in re.findall(r"^(?:from|import) (localsgd[\w.]*)", program(page), re.MULTILINE):
            assert {module, module.replace(".codecs", ".comm.codecs")} & REFERENCE, (page, module)


def test_every_module_of_the_first_face_has_a_reference_page() -> None:
    found = [getattr(localsgd, name) for name in localsgd.__all__]
    modules = {value.__name__ for value in found if inspect.ismodule(value)}
    assert modules and modules <= REFERENCE
