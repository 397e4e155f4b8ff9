"""TransNormerLLM against the first author's nanoTransNormer and the layout of the released models."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from cases import Answer, Case

from foveate.models.language.lightning_attention import TransNormerLLM
from foveate.models.official import load_official


def build(case: Case) -> tuple[TransNormerLLM, str]:
    """The model that the recorded parameters belong to, loaded, and the release that their names come from."""
    params, config = case.params, case.config
    source = "nanoTransNormer" if case.has_param(r"^transnormer\.") else "TransNormerLLM"
    projections = {int(_layer(key)): v for key, v in params.items() if key.endswith("qkvu_proj.weight")}
    lrpe = {int(_layer(key)): v for key, v in params.items() if key.endswith("lrpe.theta")}
    vocabulary, dim = params["lm_head.weight"].shape
    inner = next(v for key, v in params.items() if key.endswith("channel_mixer.l1.weight"))
    heads = next((config[k] for k in ("n_head", "decoder_attention_heads", "num_heads", "heads") if k in config), None)
    model = TransNormerLLM(
        vocabulary=vocabulary,
        dim=dim,
        depth=len(projections),
        num_heads=heads or next(iter(lrpe.values())).shape[0],
        glu_dim=inner.shape[0],
        lrpe_layers=sorted(lrpe),
        scale_embedding=_scaled(config, lrpe=set(lrpe)),
        tie=source == "nanoTransNormer",
        bias=case.has_param(r"\.bias$"),
    )
    load_official(model, params, source)
    return model, source


def _layer(key: str) -> str:
    found = re.search(r"\.(\d+)\.", key)
    assert found is not None, key
    return found[1]


def _scaled(config: dict, lrpe: set[int]) -> bool:
    """Whether embeddings are multiplied by sqrt(D): what the configuration says, else what goes with the placement.

    The released models scale and turn the first layer; nanoTransNormer does neither.
    """
    for key, value in config.items():
        if "scale" in key and "emb" in key:  # a flag, its negation, or the factor itself
            on = value if isinstance(value, bool) else value != 1
            return on != key.startswith("no_")
    return 0 in lrpe


def run(case: Case) -> Answer:
    model, source = build(case)
    inputs = case.inputs
    if "next_idx" in inputs:
        return decode(model, inputs["idx"], inputs["next_idx"])
    logits = model(inputs["idx"])
    outputs = {"logits": logits[:, -case.outputs["logits"].shape[1] :]}  # one release answers the last token only
    loss = logits.square().mean()
    if "targets" in inputs:
        loss = F.cross_entropy(logits.flatten(0, 1), inputs["targets"].flatten())
        outputs["loss"] = loss.reshape(case.outputs["loss"].shape)
    return outputs, case.gradients(loss, official_parameters(model, source, case))


def decode(model: TransNormerLLM, prompt: torch.Tensor, following: torch.Tensor) -> Answer:
    """Prefill, then one token at a time: the last logits of the prompt, those of the steps, and the states."""
    with torch.no_grad():
        logits, state = model.prefill(prompt, model.init_state(len(prompt)))
        answers = [logits[:, -1]]
        for token in following.unbind(1):
            logits, state = model.step(token, state)
            answers.append(logits)
    states = {f"kv_state.{i}": layer.kv for i, layer in enumerate(state.layers)}
    return {"step_logits": torch.stack(answers, 1), **states}, {}


def official_parameters(model: TransNormerLLM, source: str, case: Case) -> dict[str, torch.Tensor]:
    """Our parameters by the official names of the recorded ones."""
    own, named = dict(model.named_parameters()), {}
    for key in case.params:
        for pattern, replacement in model.official_keys[source].items():
            match = re.fullmatch(pattern, key)
            if match and replacement:
                named[key] = own[match.expand(replacement)]
                break
    return named
