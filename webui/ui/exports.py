"""A grid as a file to fetch: sheets, pictures, numbers, or a page that opens without a server."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

from webui.errors import InvalidField
from webui.grid import page as pages
from webui.grid import results, sheet


def written(what: str, found: results.Results, folder: Path, page: int) -> Path:
    """A grid as a file of a kind.

    Raises:
        InvalidField: there is no such kind.
    """
    if what == "zip":
        results.write_zip(found, folder / "grid.zip")
        return folder / "grid.zip"
    if what == "csv":
        (folder / "grid.csv").write_bytes(results.table(found))
        return folder / "grid.csv"
    if what == "html":
        pages.write(found, folder / "grid.html")
        return folder / "grid.html"
    if what in ("sheet", "page"):
        return _sheets(found, folder, page if what == "page" else None)
    raise InvalidField("grid", "cannot be saved like that", "Grid")


def _sheets(found: results.Results, folder: Path, page: int | None) -> Path:
    """The sheet of one page or of all; where it is too large for one file, its parts as a ZIP."""
    pages = len(found.plan.z)
    name = "grid" if pages == 1 else "all-pages" if page is None else f"page-{page + 1:0{len(str(pages))}}"
    paths = [path for path in sheet.write(found, folder) if path.stem.partition("-part-")[0] == name]
    if len(paths) == 1:
        return paths[0]
    with ZipFile(folder / f"{name}.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    return folder / f"{name}.zip"
