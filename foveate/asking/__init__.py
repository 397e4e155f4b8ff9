"""Asking video-language models the questions of a suite: frames, prompts, local models, endpoints, and answers on disk.

:func:`~foveate.asking.run.ask` shows each question's video to a model and keeps one line of JSON for each answer;
:mod:`~foveate.asking.local` runs models of transformers, :mod:`~foveate.asking.endpoint` servers that speak the
chat-completions protocol. Nothing here imports torch or transformers until a local model is opened.
"""
