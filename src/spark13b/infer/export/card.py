"""The README.md of an exported folder: what its tensors are, for whoever loads them with other tools."""

from __future__ import annotations

from spark13b.config.preset import Preset

_TEXT = """\
# {name}

A Spark language model ({layers} layers of {hidden}, {heads} heads, {vocabulary:,} tokens, context {context:,}), written
by `spark13b export --format safetensors`. `spark13b infer --load` takes this folder as it is; so do programs that know
the names of the original torch release.

| file | what is in it |
|---|---|
| `model.safetensors`, or shards with `model.safetensors.index.json` | the weights, {dtype}; some may be float32 |
| `config.json`, `generation_config.json` | the shape, by the names of Hugging Face's tools and of the original's YAML |
| `tokenizer.model` | SentencePiece; before encoding, a line end becomes `<ret>` and a tab four spaces |
| `preset.yaml` | the same for `spark13b` |

| tensor | shape | what it is |
|---|---|---|
| `embedding.word_embeddings.weight` | {vocabulary} x {hidden} | the embedding, which is the output projection as well |
| `transformer.layers.N.layer_norm.weight`, `.bias` | {hidden} | before attention |
| `transformer.layers.N.attention.q_k_v_proj.weight`, `.bias` | {qkv} x {hidden} | a third of the rows each |
| `transformer.layers.N.attention.out_proj.weight`, `.bias` | {hidden} x {hidden} | back to the residual stream |
| `transformer.layers.N.final_layer_norm.weight`, `.bias` | {hidden} | before the MLP |
| `transformer.layers.N.mlp.fc1.weight`, `.bias` | {gated} x {hidden} | even rows are the gate, odd rows the value |
| `transformer.layers.N.mlp.fc2.weight`, `.bias` | {hidden} x {half} | fc2(gelu(gate) * value), the tanh gelu |
| `transformer.layernorm.weight`, `.bias` | {hidden} | after the last layer |

A query sees the {window:,} last tokens, itself included. Rotary positions turn the halves of a head of {head} numbers
(base {theta:g}). A prompt is `{template}` with the question for `{{}}`; `<end>` ends the answer. Spark's repetition
penalty is subtracted from logits, that of other tools divides them: `generation_config.json` has none.
"""


def card_text(name: str, preset: Preset, dtype: str) -> str:
    """README.md of the folder `name` with the model of `preset`, whose matrices are stored as `dtype`."""
    model = preset.model
    return _TEXT.format(
        name=name,
        layers=model.num_layers,
        hidden=model.hidden_size,
        heads=model.num_heads,
        head=model.head_size,
        vocabulary=model.vocab_size,
        context=model.seq_length,
        window=model.sparse_local_size,
        theta=model.rope_theta,
        dtype=dtype,
        qkv=3 * model.hidden_size,
        gated=model.ffn_hidden_size,
        half=model.ffn_hidden_size // 2,
        template=preset.generation.prompt_template,
    )
