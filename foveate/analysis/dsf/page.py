"""A page of mixing matrices side by side: what each layer lets every token read from every earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from markupsafe import Markup
from torch import Tensor

from ... import __version__
from ...errors import InvalidValue
from ...mixers.base import Mixer
from ...pages.heatmaps import matrix_map
from ...pages.page import date, render_page
from .system import Realization, System
from .tables import distances, structure, systems_of

#: Longest sequence of a picture: a square for every pair of tokens.
LONGEST = 160


def write_page(mixers: Mapping[str, Mixer], x: Tensor, path: Path | str) -> Path:
    """Write the page of some mixers on an input; see :func:`render`.

    Args:
        mixers: by the names that the page shows.
        x: ``(batch, L, dim)``; the first sample is drawn.
        path: the HTML file.

    Returns:
        The file's path.

    Raises:
        InvalidType, InvalidValue: as :func:`foveate.analysis.dsf.matrices` and :func:`render`.
    """
    path = Path(path)
    path.write_text(render(systems_of(mixers, x)), encoding="utf-8")
    return path


def render(systems: Mapping[str, System]) -> str:
    """The page as HTML: pictures, the matrices in words, distances.

    Raises:
        InvalidValue: no system, or a sequence of more than :data:`LONGEST` tokens.
    """
    if not systems:
        raise InvalidValue("there is nothing to draw: at least one system is needed.")
    length = next(iter(systems.values())).length
    if length > LONGEST:
        raise InvalidValue(f"a sequence of {length} tokens is too long for a picture: {LONGEST} at most.")
    drawings = []
    for name, system in systems.items():
        phi = _through_the_state(system)[0].flatten(0, 1).detach()
        typical = _typical(phi)
        drawing = matrix_map(
            phi[typical].tolist(),
            title=f"Mixing matrix of {name}",
            description=f"How much token i reads from token j, {length} tokens; zero above the diagonal.",
            row_name="reads",
            column_name="from",
        )
        drawings.append((name, Markup(drawing), _words(phi, typical)))
    return render_page(
        "systems.html",
        Path(__file__).parent / "templates",
        version=__version__,
        created=date(datetime.now(UTC).isoformat()),
        length=length,
        count=len(systems),
        drawings=drawings,
        structure=structure(systems),
        distances=distances(systems),
    )


def _through_the_state(system: System) -> Tensor:
    """The mixing matrix without D, beside which a recurrence that has just begun to learn would not be seen."""
    if isinstance(system, Realization):
        system = replace(system, skip=torch.zeros_like(system.skip))
    return system.mixing_matrix()


def _typical(phi: Tensor) -> int:
    """Of mixing matrices ``(k, L, L)`` the one that reaches back as far as the median one does."""
    reach = _reach(phi)
    return int((reach - reach.median()).abs().argmin())


def _reach(phi: Tensor) -> Tensor:
    """Mean distance of what is read, by absolute weight, ``(k,)``."""
    places = torch.arange(phi.shape[-1], dtype=phi.dtype, device=phi.device)
    weight = phi.abs()
    return (weight * (places[:, None] - places).abs()).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-30)


def _words(phi: Tensor, index: int) -> str:
    shown = f"matrix {index + 1} of {len(phi)}; " if len(phi) > 1 else ""
    negative = float((phi[index] < 0).double().sum() / phi[index].ne(0).double().sum().clamp(min=1))
    reach = float(_reach(phi)[index])
    return f"{shown}reaches back {reach:.1f} tokens on average; {negative:.0%} of its weights are negative"
