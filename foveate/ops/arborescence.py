"""Maximum spanning arborescences: the tree in which every node but one has the parent that suits it best, together.

Chu and Liu (1965), Edmonds (1967): every node takes its best parent; where that makes a cycle, the cycle becomes one
node, whose edges from outside count what entering there would cost, and so on. On a matrix, each of at most n rounds
takes O(n^2).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InvalidType, InvalidValue


def maximum_arborescence(weights: Tensor, root: int | Tensor) -> Tensor:
    """The spanning trees of largest sum of weights.

    Args:
        weights: ``(batch, n, n)``, at ``[parent, child]``; the diagonal is not read.
        root: of every tree: a number, or int64 ``(batch,)``.

    Returns:
        int64 ``(batch, n)``: every node's parent, -1 for the root.

    Raises:
        InvalidValue: another shape, values that are not finite, or a root that is no node.
        InvalidType: weights that are not floating.
    """
    if weights.ndim != 3 or weights.shape[1] != weights.shape[2] or not weights.shape[1]:
        raise InvalidValue(f"weights have shape {tuple(weights.shape)}; (batch, n, n) is needed.")
    if not weights.is_floating_point():
        raise InvalidType(f"weights must be floating point, not {weights.dtype}.")
    count = weights.shape[1]
    scores = weights.detach().transpose(1, 2).double().cpu().numpy()
    if not np.isfinite(scores[:, ~np.eye(count, dtype=bool)]).all():
        raise InvalidValue("weights must be finite: a tree of them has no sum otherwise.")
    roots = root.tolist() if isinstance(root, Tensor) else [root] * len(scores)
    if len(roots) != len(scores) or any(not 0 <= r < count for r in roots):
        raise InvalidValue(f"root={root!r} is not possible: each tree's root must be one of {count} nodes.")
    trees = [_arborescence(matrix, r) for matrix, r in zip(scores, roots, strict=True)]
    return torch.from_numpy(np.stack(trees)).to(weights.device) if trees else torch.zeros(0, count, dtype=torch.int64)


def _arborescence(scores: NDArray[np.float64], root: int) -> NDArray[np.int64]:
    """Parents of one tree; ``scores[child, parent]``."""
    scores = scores.copy()
    np.fill_diagonal(scores, -np.inf)
    rounds = []
    while True:
        parents = scores.argmax(1)
        parents[root] = -1
        cycle = _cycle(parents)
        if cycle is None:
            break
        # The cycle becomes the last node; what enters it at a member costs the edge that the member gives up.
        outside = np.setdiff1d(np.arange(len(scores)), cycle)
        entering = scores[np.ix_(cycle, outside)] - scores[cycle, parents[cycle]][:, None]
        leaving = scores[np.ix_(outside, cycle)]
        rounds.append((parents, cycle, outside, entering.argmax(0), leaving.argmax(1)))
        smaller = np.full((len(outside) + 1,) * 2, -np.inf)
        smaller[:-1, :-1] = scores[np.ix_(outside, outside)]
        smaller[-1, :-1], smaller[:-1, -1] = entering.max(0), leaving.max(1)
        scores, root = smaller, int(np.searchsorted(outside, root))
    for before, cycle, outside, entered, left in reversed(rounds):
        whole, last = before.copy(), len(outside)
        for i, (node, parent) in enumerate(zip(outside, parents[:-1], strict=True)):
            whole[node] = -1 if parent < 0 else cycle[left[i]] if parent == last else outside[parent]
        whole[cycle[entered[parents[-1]]]] = outside[parents[-1]]
        parents = whole
    return parents.astype(np.int64)


def _cycle(parents: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The nodes of a cycle, or None."""
    state = np.zeros(len(parents), dtype=np.int8)  # 1: on the walk of now, 2: leads to the root
    for start in range(len(parents)):
        walk, node = [], start
        while node >= 0 and state[node] == 0:
            state[node] = 1
            walk.append(node)
            node = parents[node]
        if node >= 0 and state[node] == 1:
            return np.sort(np.array(walk[walk.index(node) :]))
        state[walk] = 2
    return None
