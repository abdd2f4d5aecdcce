"""A hook of MkDocs: a link to a file outside docs/ is plain text on the site, which holds the pages alone."""

import re
from pathlib import Path

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown, page, config, **_):
    """Return the page's text with the links that leave the documents' folder replaced by their words."""
    docs, folder = Path(config["docs_dir"]), Path(page.file.abs_src_path).parent

    def kept(found):
        inside = (folder / found.group(2)).resolve().is_relative_to(docs.resolve())
        return found.group() if inside else found.group(1)
    return LINK.sub(kept, markdown)
