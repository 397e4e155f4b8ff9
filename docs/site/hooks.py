"""MkDocs' hooks: add generated pages, lead links out of docs/ to where the site has them, read Sphinx's roles."""

from __future__ import annotations

import posixpath
import re
from typing import Any

import pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)]*)?\))")
FENCE = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):<code>(?:([^<&]+) &lt;)?~?([\w.]+)(?:&gt;)?</code>")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the navigation's generated sections: those whose place is a folder."""
    sections = {"systems/": pages.system_navigation, "benchmarks/": pages.benchmark_navigation}

    def fill(items: list[Any]) -> None:
        for item in items:
            for title, value in item.items() if isinstance(item, dict) else ():
                if isinstance(value, list):
                    fill(value)
                elif value in sections:
                    item[title] = sections[value]()

    fill(config.nav or [])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages; a page of a system is made from the hand-written one, where there is one."""
    for name, content in pages.generated().items():
        written = files.get_file_from_path(name)
        if written is not None:
            files.remove(written)
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in generated fragments, and turn links to the repository's files into links of the site."""
    here = pages.source_of(page.file.src_uri)
    markdown = re.sub(r"^<!-- site: (\w+) -->$", lambda m: pages.FRAGMENTS[m[1]](), markdown, flags=re.MULTILINE)

    def lead(found: re.Match[str]) -> str:
        if re.match(r"[a-z]+:", found[2]):
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), found[2]))
        name = pages.page_of(target)
        if not (pages.ROOT / target).exists():
            return found[0]  # MkDocs will warn
        if name is None or files.get_file_from_path(name) is None:
            kind = "tree" if (pages.ROOT / target).is_dir() else "blob"
            return f"{found[1]}{config.extra['repository']}/{kind}/main/{target}{found[3]}"
        return found[1] + posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or ".") + found[3]

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(lead, part) for part in parts)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings are written for Sphinx's roles: make links of full names, and plain code of the rest."""

    def refer(found: re.Match[str]) -> str:
        *parents, name = found[2].split(".")
        shown = f"<code>{found[1] or name}</code>"
        return f'<autoref identifier="{found[2]}" optional>{shown}</autoref>' if any(parents) else shown

    return re.sub(r"::(</p>\s*<div class=\"[^\"]*highlight)", r":\1", ROLE.sub(refer, html))
