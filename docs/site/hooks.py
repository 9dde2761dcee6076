"""What the site shows beside the pages in docs/: lessons, changelog, contributing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add pages that are made of files outside of docs/."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    exporter = MarkdownExporter()
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        names = {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
        text, resources = exporter.from_filename(str(path), resources=names)
        files.append(File.generated(config, f"lessons/{path.stem}.md", content=text))
        for name, content in resources["outputs"].items():
            files.append(File.generated(config, f"lessons/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links that are right in the repository into links of the site."""
    markdown = re.sub(r"\]\((?:\.\./)+notebooks/(\w+)\.ipynb", r"](lessons/\1.md", markdown)
    for page, source in PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)*{re.escape(source)}", f"]({page}", markdown)
    # What the site does not show is named, not linked.
    return re.sub(
        r"\[([^]]+)\]\((?:\.\./)+(?:configs|src|tests|benchmarks)/[^)]*\)", r"\1", markdown
    )


def on_page_content(html: str, **_: Any) -> str:
    """Sphinx's roles in docstrings (``:func:`name```) are plain code here."""
    return re.sub(r":(?:func|class|meth|mod|attr):(?=<code)", "", html)
