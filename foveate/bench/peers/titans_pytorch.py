"""lucidrains' neural memory: the same job as our Titans memories, with other details and weights of its own."""

from __future__ import annotations

from ..cases import Problem
from . import Contender, library, peer


@peer("titans-pytorch NeuralMemory", of=("titans*",), package="titans_pytorch", same=False)
def memory(problem: Problem) -> Contender:
    x = problem.inputs["x"]
    module = library("titans_pytorch").NeuralMemory(dim=x.shape[-1], chunk_size=64).eval()
    return Contender(lambda x: module(x)[0], tuple(module.parameters()))
