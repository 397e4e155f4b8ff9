"""SeerAttention on decoders of transformers: gates beside every family, their distillation, padding, caches."""

from __future__ import annotations

import pytest
import torch

from foveate.control.seer_attention import SeerAttention, calibrate, distill
from foveate.errors import InvalidType, InvalidValue
from foveate.models.official import load_official

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = torch.randint(50, (2, 90), generator=torch.Generator().manual_seed(1))


def llama(**options):
    torch.manual_seed(0)
    given = {**SMALL, "num_key_value_heads": 2, "initializer_range": 0.3, **options}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**given)).eval()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def neox():
    torch.manual_seed(0)
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SMALL, bos_token_id=0, eos_token_id=0)).eval()


def qwen3():
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16)
    return transformers.Qwen3ForCausalLM(config).eval()


def gates_of(model, **options) -> SeerAttention:
    torch.manual_seed(2)
    gates = SeerAttention.for_model(model, **{"block_size": 8, **options})
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.mul_(20)
    return gates


def logits(model, tokens=TOKENS, **options):
    with torch.no_grad():
        return model(tokens, **options).logits


@pytest.mark.parametrize("make", [llama, gpt2, neox, qwen3])
@pytest.mark.parametrize("gate_dim", [None, 4])
def test_everything_kept_is_the_model(make, gate_dim):
    model = make()
    expected, weights = logits(model), {k: v.clone() for k, v in model.state_dict().items()}
    mask = torch.ones_like(TOKENS)
    mask[0, :37] = 0
    padded = logits(model, attention_mask=mask)
    gates = gates_of(model, gate_dim=gate_dim, ratio=1.0, last_block_dense=False)
    with gates.attached(model):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
        assert gates.density() == 1.0
        torch.testing.assert_close(logits(model, attention_mask=mask)[0, 37:], padded[0, 37:], rtol=1e-4, atol=1e-5)
        gates.set_selection(ratio=0.2)
        assert not torch.allclose(logits(model), expected, atol=1e-4)
        assert gates.density() < 0.5
        assert model.state_dict().keys() == weights.keys()
    assert torch.equal(logits(model), expected)
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_gate_sees_what_the_mixer_would(make):
    # On its right padding cannot move blocks: a padded sample is what it is alone, even where blocks are left out.
    model = make()
    gates = gates_of(model, select="threshold", threshold=0.1)
    mask = torch.ones_like(TOKENS)
    mask[0, 61:] = 0
    with gates.attached(model):
        alone = logits(model, TOKENS[:1, :61])
        padded = logits(model, attention_mask=mask)[:1, :61]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


def test_whole_blocks_of_left_padding_change_nothing():
    model = llama()
    gates = gates_of(model, select="threshold", threshold=0.1)
    mask = torch.ones_like(TOKENS)
    mask[0, :24] = 0
    with gates.attached(model):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        padded = logits(model, attention_mask=mask, position_ids=positions)[:1, 24:]
        torch.testing.assert_close(padded, logits(model, TOKENS[:1, 24:]), rtol=1e-4, atol=1e-5)


def test_pieces_of_a_prompt_and_single_tokens():
    model = llama()
    gates = gates_of(model, select="threshold", threshold=0.1, last_block_dense=False)
    with gates.attached(model):
        expected = logits(model)
        for sizes in ([16, 40, 34], [72, 18]):
            cache, found = None, []
            for piece in TOKENS.split(sizes, 1):
                with torch.no_grad():
                    out = model(piece, use_cache=True, cache=cache) if cache else model(piece, use_cache=True)
                cache = out.past_key_values if "past_key_values" in out else out["cache"]
                found.append(out.logits)
            torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-4, atol=1e-5)
        gates.set_selection(threshold=-1.0)
        inside = []
        cache = None
        for piece in TOKENS.split([13, 40, 36, 1], 1):
            with torch.no_grad():
                out = model(piece, use_cache=True, cache=cache) if cache else model(piece, use_cache=True)
            cache = out.past_key_values if "past_key_values" in out else out["cache"]
            inside.append(out.logits)
    torch.testing.assert_close(torch.cat(inside, 1), logits(model), rtol=1e-4, atol=1e-5)


def test_it_generates_in_batches_and_beams():
    model = llama()
    gates = gates_of(model, ratio=1.0)
    mask = torch.ones_like(TOKENS[:, :40])
    mask[0, :9] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    for beams in (1, 2):
        expected = model.generate(TOKENS[:, :40], num_beams=beams, **options)
        with gates.attached(model):
            assert torch.equal(model.generate(TOKENS[:, :40], num_beams=beams, **options), expected)


@pytest.mark.parametrize("gate_dim", [None, 4])
def test_it_compiles(gate_dim):
    model = llama()
    gates = gates_of(model, gate_dim=gate_dim)
    with gates.attached(model):
        expected = logits(model)
        compiled = torch.compile(model, backend="aot_eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(TOKENS).logits, expected, rtol=1e-4, atol=1e-5)


def test_layers_and_heads():
    model = llama()
    expected = logits(model)
    for options in ({"layers": [1]}, {"heads": [1, 2]}, {"layers": [0], "heads": [2, 3]}):
        gates = gates_of(model, ratio=1.0, **options)
        with gates.attached(model):
            torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert list(gates.gates) == ["0"]
    assert gates.gates["0"].num_k_heads == 1
    for options in ({"layers": [2]}, {"heads": [4]}):
        with pytest.raises(InvalidValue, match=r"there are (layers|heads) 0 to"):
            gates_of(model, **options)


def test_distillation_teaches_gates_alone():
    model = llama()
    model.train()
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    gates = SeerAttention.for_model(model, block_size=8)
    losses = distill(gates, model, [TOKENS], steps=60, lr=3e-2, warmup=5)
    assert len(losses) == 60
    assert losses[-1] < 0.6 * losses[0]
    assert model.training
    assert not gates.training
    assert all(torch.equal(expected[k], v) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    with pytest.raises(InvalidValue, match="batches is not possible: it has ended"):
        distill(gates, model, iter([TOKENS]), steps=3)
    assert not gates.training
    with pytest.raises(InvalidValue, match="steps=0"):
        distill(gates, model, [TOKENS], steps=0)


def test_training_mode_is_the_models_own_attention():
    model = llama()
    gates, expected = gates_of(model), logits(model)
    gates.train()
    with gates.attached(model):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


def test_a_threshold_for_a_sparsity(tmp_path):
    model = llama()
    gates = gates_of(model)
    kept = calibrate(gates, model, TOKENS, 0.4)
    assert kept <= 0.6
    assert kept > 0.5
    assert gates.selection.select == "threshold"
    gates.save_pretrained(tmp_path)
    again = SeerAttention.from_pretrained(tmp_path)
    assert again.selection == gates.selection
    with gates.attached(model):
        expected = logits(model)
    with again.attached(model):
        assert torch.equal(logits(model), expected)
    with pytest.raises(InvalidValue, match=r"sparsity=1\.0"):
        calibrate(gates, model, TOKENS, 1.0)


def test_the_released_names_of_gates():
    model = llama()
    gates = gates_of(model)
    released = {f"model.layers.{i}.self_attn.attn_gate.mask_linear_k.weight": torch.randn(4, 24, 8) for i in range(2)}
    load_official(gates, released)
    assert torch.equal(gates.gates["1"].mask_linear_k.weight, released[list(released)[1]])
    with pytest.raises(InvalidValue, match=r"missing gates\.0"):
        load_official(gates, {k: v for k, v in released.items() if ".0." not in k})


def test_what_does_not_fit_is_refused():
    model = llama()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for other in (
        llama(num_hidden_layers=3),
        llama(num_attention_heads=8, num_key_value_heads=2),
        llama(num_key_value_heads=4),
        llama(head_dim=16),
    ):
        with pytest.raises(InvalidValue, match="these gates are of another model: they are for 2 layers of 4 and 2"):
            gates_of(model).attach(other)
    with pytest.raises(InvalidType, match="SeerAttention does not know Linear"):
        SeerAttention.for_model(torch.nn.Linear(2, 2))
    with pytest.raises(InvalidValue, match="num_kv_heads=3"):
        SeerAttention(num_layers=1, num_heads=4, num_kv_heads=3, head_dim=8)
    gates, second = gates_of(model), gates_of(model)
    with pytest.raises(InvalidValue, match="has read no prompt yet"):
        gates.density()
    with pytest.raises(InvalidType, match="'density' is not an option of a selection"):
        gates.set_selection(density=0.5)
    with gates.attached(model), pytest.raises(InvalidValue, match="SeerAttention"):
        second.attach(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
