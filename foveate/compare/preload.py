"""Imported by the fork server: what every worker would otherwise find out anew, such as which systems there are."""

from ..registry import entries

entries()
