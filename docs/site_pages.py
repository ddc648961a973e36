"""What the site has besides the pages of docs/: a hook of mkdocs (``mkdocs.yml``, ``make docs``).

The pages read on GitHub as they stand, so what a site needs is made here: the README is its first
page, a link that leaves docs/ takes the file that it leads to along (Markdown and pictures as they
are, code as a page that shows it), and every ``reference/MODULE.md`` of the navigation is made of
the docstrings of what that module's face lists.
"""

from __future__ import annotations

import ast
import importlib
import os
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)")
FIRST, CUT = "localsgd", ("localsgd", "localsgd.torch")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is not in docs/."""
    pages = [page for page in navigated(config.nav) if page.startswith("reference/localsgd")]
    faces = [Path(page).stem for page in pages]
    made_of = dict(zip(pages, (reference_page(module, faces) for module in faces), strict=True))
    for page, text in {**made_of, "reference/command.md": command_page()}.items():
        files.append(File.generated(config, page, content=text))
    waiting = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
    waiting += [f"docs/{file.src_uri}" for file in files.documentation_pages() if made(file)]
    seen: set[str] = set()
    while waiting:
        source = waiting.pop()
        if source not in seen and (ROOT / source).is_file():
            seen.add(source)
            if not source.startswith("docs/"):
                files.append(taken_along(source, config))
            if source.endswith(".md"):
                waiting += links(source)
    return files


def made(file: File) -> bool:
    """Whether it is a file of docs/, not one of those made here."""
    return file.generated_by is None


def navigated(nav: object) -> Iterator[str]:
    """The pages that a navigation names."""
    if isinstance(nav, str):
        yield nav
    for inner in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from navigated(inner)


def links(source: str) -> list[str]:
    """The files of the repository to which a page of it leads."""
    text = FENCED.sub("", (ROOT / source).read_text("utf-8"))
    folder = posixpath.dirname(source)
    return [posixpath.normpath(posixpath.join(folder, target)) for target in LINK.findall(text)]


def place(source: str) -> str:
    """Where the site has a file of the repository, below its folder of pages."""
    if source == "README.md":
        return "index.md"
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    return source if Path(source).suffix in (".md", ".png", ".svg") else f"{source}.md"


def taken_along(source: str, config: MkDocsConfig) -> File:
    """A file from outside docs/, or a page that shows it."""
    if place(source) == source and not source.endswith(".md"):
        return File(source, str(ROOT), config.site_dir, use_directory_urls=False)
    text = (ROOT / source).read_text("utf-8")
    if not source.endswith(".md"):
        text = f"# {source}\n\n```{Path(source).suffix[1:]}\n{text}```\n"
    return File.generated(config, place(source), content=text)


def on_page_markdown(text: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the links of a page, which are those of the repository, into the site's."""
    uri = page.file.src_uri
    source = {"index.md": "README.md"}.get(uri, f"docs/{uri}" if made(page.file) else uri)

    def on_the_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        return "](" + os.path.relpath(place(target), posixpath.dirname(uri) or ".")

    parts = re.split(rf"({FENCED.pattern})", text, flags=FENCED.flags)
    return "".join(
        part if part.startswith("```") else LINK.sub(on_the_site, part) for part in parts
    )


def reference_page(module: str, faces: Collection[str]) -> str:
    """What a face lists: two cut as their rooms are, others less what another face shows."""
    page = [f"# {titled(module)}", documentation(module)]
    if module in CUT:
        for room, names in taken(module).items():
            page += [f"## {documentation(room).rstrip('.')}", *shown(module, names, level=3)]
        return "\n\n".join(page) + "\n"
    listed = names_of(face(module), "__all__")
    places = dict.fromkeys(taken(FIRST).get(module, ()), FIRST)
    for room, names in taken(module).items():
        places |= dict.fromkeys(names, room) if room in faces else {}
        listed = [name for name in listed if f"{module}.{name}" not in faces]
    if elsewhere := [name for name in listed if name in places]:
        links = (f"[`{name}`]({places[name]}.md#{places[name]}.{name})" for name in elsewhere)
        page.append(f"Also here, and shown there: {', '.join(links)}.")
    rest = [name for name in listed if name not in places]
    page += shown(module, rest, level=2) if listed else [f"::: {module}"]
    return "\n\n".join(page) + "\n"


def titled(module: str) -> str:
    """The name by which pages import it."""
    return module.replace(".comm.codecs", ".codecs")


def shown(module: str, names: Iterable[str], level: int) -> list[str]:
    """Blocks for mkdocstrings, each under a heading of its own."""
    options = f"    options: {{heading_level: {level}, show_root_heading: true}}"
    return [f"::: {module}.{name}\n{options}" for name in names]


def face(module: str) -> ast.Module:
    """A module's own file, read and not imported: torch need not be there."""
    path = ROOT / module.replace(".", "/")
    return ast.parse(
        (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    )


def documentation(module: str) -> str:
    """The first paragraph of a module's docstring."""
    return (ast.get_docstring(face(module)) or "").split("\n\n")[0]


def taken(module: str) -> dict[str, list[str]]:
    """The rooms from which a face takes what it lists, and what; rooms themselves left out."""
    found = {}
    for node in face(module).body:
        if isinstance(node, ast.ImportFrom) and node.module not in (None, module):
            room = f"{module}.{node.module}" if node.level else node.module
            found[room] = [alias.name for alias in node.names if alias.name != "codecs"]
    return {room: names for room, names in found.items() if names}


def names_of(tree: ast.Module, variable: str) -> list[str]:
    """The texts of a list at the top of a file; none if there is no such list."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == variable:
            return list(ast.literal_eval(node.value))
    return []


def command_page() -> str:
    """What ``localsgd --help`` says, and each of its commands."""
    group = importlib.import_module("localsgd.cli.commands").localsgd
    top = click.Context(group, info_name=group.name, **group.context_settings)
    page = ["# The command", fenced_help(top)]
    for name, command in group.commands.items():
        context = click.Context(command, info_name=name, parent=top)
        page += [f"## {context.command_path}", fenced_help(context)]
    return "\n\n".join(page) + "\n"


def fenced_help(context: click.Context) -> str:
    return f"```text\n{context.get_help()}\n```"
