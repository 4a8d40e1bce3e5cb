"""Hooks of the site's build: where Mermaid, which draws the graph in the browser, comes from.

Nothing is fetched while the site is built. Without more, the theme lets the reader's browser get Mermaid from its
public address when a page has a diagram; without a network the diagram's text is shown. `MERMAID_JS=FILE make docs`
puts that file (`dist/mermaid.min.js` of the npm package `mermaid`, version 11) into the site, which then asks nothing
of the network.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

TARGET = "javascripts/mermaid.min.js"


def on_config(config: MkDocsConfig, **_: Any) -> MkDocsConfig:
    if os.environ.get("MERMAID_JS"):
        config.extra_javascript.append(TARGET)
    return config


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    source = os.environ.get("MERMAID_JS")
    if source:
        path = Path(source).expanduser()
        if not path.is_file():
            raise PluginError(f"MERMAID_JS={source}: no such file; give mermaid.min.js")
        files.append(File.generated(config, TARGET, abs_src_path=str(path.absolute())))
    return files
