"""Docstrings on the site (an extension of griffe, ``mkdocs.yml``): doctests are shown as code.

Between paragraphs a doctest is no Markdown: ``>>>`` would be three quotations, and a list that is
printed a link.
"""

from __future__ import annotations

import re

import griffe

DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)


def fenced(text: str) -> str:
    """The text with its doctests as fenced blocks."""
    return DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", text)


class Doctests(griffe.Extension):
    """Fences the doctests of every docstring that is shown."""

    def on_object(self, *, obj: griffe.Object, **rest: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
