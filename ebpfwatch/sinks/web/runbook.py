"""docs/runbook.md and its translations as pages: where an alert's runbook_url leads.

Of Markdown only what that file uses: headings, paragraphs, lists, code, bold, links.  A link to a
heading, or to the runbook in another language, stays one; a link to another file becomes its text,
for that file is not served.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

from ebpfwatch.paths import beside

__all__ = ["LANGUAGES", "to_html"]

_DOCS = beside("docs")
#: Path of the page: language and file, in a checkout or as it was installed.
LANGUAGES: dict[str, tuple[str, Path]] = {
    "/runbook": ("en", _DOCS / "runbook.md"),
    "/runbook.zh-CN": ("zh-CN", _DOCS / "runbook.zh-CN.md"),
}

_ITEM = re.compile(r"(\d+\.|-) +")
_INLINE = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*|\*([^*]+)\*|\[([^]]+)\]\(([^)]+)\)")


def to_html(text: str) -> str:
    """The blocks, one after the other."""
    return "".join(_block(block) for block in re.split(r"\n\s*\n", text.strip()))


def _block(block: str) -> str:
    lines = block.split("\n")
    if lines[0].startswith("#"):
        heading, *rest = lines
        level = len(heading) - len(heading.lstrip("#"))
        title = heading.lstrip("#").strip()
        name = html.escape(title.lower(), quote=True)
        after = _block("\n".join(rest)) if rest else ""
        return f"<h{level} id='{name}'>{_inline(title)}</h{level}>{after}"
    if all(line.startswith("    ") for line in lines):
        code = html.escape("\n".join(line[4:] for line in lines))
        return f"<pre>{code}</pre>"
    if _ITEM.match(lines[0]):
        return _list(lines)
    return f"<p>{_inline(' '.join(line.strip() for line in lines))}</p>"


def _list(lines: list[str]) -> str:
    kind = "ul" if lines[0].startswith("-") else "ol"
    items: list[str] = []
    for line in lines:
        found = _ITEM.match(line)
        if found:
            items.append(line[found.end() :])
        else:
            items[-1] += " " + line.strip()
    return f"<{kind}>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</{kind}>"


def _inline(text: str) -> str:
    parts = []
    at = 0
    for found in _INLINE.finditer(text):
        parts.append(html.escape(text[at : found.start()]))
        at = found.end()
        code, bold, slanted, label, target = found.groups()
        if code is not None:
            parts.append(f"<code>{html.escape(code)}</code>")
        elif bold is not None:
            parts.append(f"<strong>{_inline(bold)}</strong>")
        elif slanted is not None:
            parts.append(f"<em>{html.escape(slanted)}</em>")
        elif f"/{target.removesuffix('.md')}" in LANGUAGES:
            parts.append(f"<a href='/{target.removesuffix('.md')}'>{html.escape(label)}</a>")
        elif target.startswith("#"):
            parts.append(f"<a href='{html.escape(target)}'>{html.escape(label)}</a>")
        else:
            parts.append(html.escape(label))
    return "".join([*parts, html.escape(text[at:])])
