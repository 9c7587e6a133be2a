"""How does a page, a table or a figure reach the disk? Whole, or not at all.

The new content is written beside the old one and takes its place at once, so a full disk or a kill leaves the file
that was there.
"""

from __future__ import annotations

from pathlib import Path

from selectkd_eval.errors import InputError


def put(path: Path, content: str | bytes) -> Path:
    """Write a file, with its directory; an InputError says why it could not be written."""
    beside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give a writable --out with free space") from None
    return path
