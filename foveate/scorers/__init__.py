"""Published benchmarks of video-language models: their questions, and their answers scored.

Each suite is one file named by its slug, a :class:`~foveate.scorers.base.Suite`; :func:`~foveate.scorers.score.score`
scores a model's answers by the official rules and by strict ones. Nothing here imports torch.
"""
