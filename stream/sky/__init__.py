"""The sky as it is known beforehand: catalogue tiles, orbits' lines, the grid of fields."""

from stream.sky.fields import field_centre, field_grid
from stream.sky.importer import CatalogSummary, ImportSummary, import_catalog, list_catalogs
from stream.sky.orbits import orbit_lines
from stream.sky.tiles import CatalogTiles

__all__ = [
    "CatalogSummary",
    "CatalogTiles",
    "ImportSummary",
    "field_centre",
    "field_grid",
    "import_catalog",
    "list_catalogs",
    "orbit_lines",
]
