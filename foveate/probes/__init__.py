"""Probes of one's own: clips that conflict in time alone, made of any videos, with questions in the suites' formats.

TempCompass and MVBench ask about clips that share their pictures and differ in their order or speed, so that no single
picture answers. :func:`~foveate.probes.make.make` builds such clips from a user's videos: played backwards, beside a
faster copy, one after another in both orders, mirrored; and static ones as a control. Nothing here imports torch.
"""
