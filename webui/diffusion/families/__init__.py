"""Families of models: how the parts of each are put together, told and called, in a module for each."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from webui.diffusion.lineage import FACTS
from webui.errors import Unsupported
from webui.request import invalid

if TYPE_CHECKING:
    from webui.diffusion.families.family import Family


def of(name: str) -> Family:
    """The family of this name. Imports torch.

    Raises:
        Unsupported: there is no such family here.
    """
    if name not in FACTS:
        raise invalid("model", f"is of a family ({name or 'unknown'}) that cannot be run", Unsupported)
    module = importlib.import_module(f"{__name__}.{FACTS[name].module}")
    family: Family = module.FAMILIES[name]
    return family
