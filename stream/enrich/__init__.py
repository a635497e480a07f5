"""Enrich: what is known around a candidate."""

from stream.enrich.catalogs import match_catalogs

__all__ = ["match_catalogs"]
