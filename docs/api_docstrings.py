"""For mkdocstrings: two sections of the package's docstrings, under names that Griffe's parser knows."""

import re
import textwrap

import griffe

REFERENCES = re.compile(r"^References:\n((?:[ \t]+.*\n?|\n(?=[ \t]))+)", re.MULTILINE)


class Sections(griffe.Extension):
    """`Example:` becomes `Examples:`, and `References:` a paragraph instead of a box."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = REFERENCES.sub(
                lambda section: f"**References:** {textwrap.dedent(section[1]).strip()}\n\n", text
            )
