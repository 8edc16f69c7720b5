"""The model of shared/SPEC.md, section 1, and its gradients in plain NumPy float64: naive, slow, one formula a line.

Written from the page alone, to be compared with. Every `..._backward` takes the gradient of its forward function's
result and gives the gradients of its arguments.
"""

from __future__ import annotations

import numpy as np

from spark13b.config.model import SparkConfig

Array = np.ndarray
Weights = dict[str, np.ndarray]


class NumpyModel:
    """`weights` by full name; computed with in float64, and may be changed in between."""

    def __init__(self, config: SparkConfig, weights: Weights) -> None:
        self.config = config
        self.weights: Weights = {name: array.astype(np.float64) for name, array in weights.items()}

    def logits(self, ids: Array) -> Array:
        """(B, T) -> (B, T, V)"""
        return self._forward(ids)[0]

    def loss(self, ids: Array, mask: Array) -> float:
        """ids (B, T+1), mask of the targets (B, T) -> sum(mask * nll) / (sum(mask) + 1e-5)"""
        return cross_entropy(self.logits(ids[:, :-1]), ids[:, 1:], mask)[0]

    def gradients(self, ids: Array, mask: Array) -> tuple[float, Weights]:
        """The loss and its gradient by every weight."""
        inputs, targets = ids[:, :-1], ids[:, 1:]
        logits, x, layers, before_last_norm = self._forward(inputs)
        loss, dlogits = cross_entropy(logits, targets, mask)
        found: Weights = {}
        table = "transformer.embedding.word_embeddings.embedding_table"
        last = "transformer.transformer.layernorm"
        found[table] = np.einsum("btv,btc->vc", dlogits, x)
        dx = dlogits @ self.weights[table]
        dx, found[f"{last}.gamma"], found[f"{last}.beta"] = norm_backward(
            dx, before_last_norm, self.weights[f"{last}.gamma"], self.config.layernorm_epsilon
        )
        for index in reversed(range(self.config.num_layers)):
            dx = self._layer_backward(index, dx, layers[index], found)
        for token in np.ndindex(inputs.shape):
            found[table][inputs[token]] += dx[token]
        return loss, found

    def _forward(self, ids: Array) -> tuple[Array, Array, list[dict[str, Array]], Array]:
        """logits, the last hidden state, what each layer keeps for its gradient, the last norm's input"""
        table = self.weights["transformer.embedding.word_embeddings.embedding_table"]
        x = table[ids]
        layers = []
        for index in range(self.config.num_layers):
            x, kept = self._layer(index, x)
            layers.append(kept)
        before = x
        x = self._norm("transformer.transformer.layernorm", x)
        return x @ table.T, x, layers, before

    def _layer(self, index: int, x: Array) -> tuple[Array, dict[str, Array]]:
        here = f"transformer.transformer.layers.{index}"
        kept = {"x": x}
        h = kept["h"] = self._norm(f"{here}.layer_norm", x)
        q = kept["q"] = rope(self._split(self._linear(f"{here}.attention.q_proj", h)), self.config.rope_theta)
        k = kept["k"] = rope(self._split(self._linear(f"{here}.attention.k_proj", h)), self.config.rope_theta)
        v = kept["v"] = self._split(self._linear(f"{here}.attention.v_proj", h))
        weights = kept["weights"] = attention_weights(q, k, self.config.sparse_local_size)
        a = kept["a"] = self._join(weights @ v)
        x = kept["middle"] = x + self._linear(f"{here}.attention.out_proj", a)
        g = kept["g"] = self._norm(f"{here}.final_layer_norm", x)
        gate = kept["gate"] = self._linear(f"{here}.mlp.fc0", g)
        value = kept["value"] = self._linear(f"{here}.mlp.fc1", g)
        kept["product"] = gelu(gate) * value
        return x + self._linear(f"{here}.mlp.fc2", kept["product"]), kept

    def _layer_backward(self, index: int, dx: Array, kept: dict[str, Array], found: Weights) -> Array:
        here = f"transformer.transformer.layers.{index}"
        dproduct = self._linear_backward(f"{here}.mlp.fc2", dx, kept["product"], found)
        dgate = dproduct * kept["value"] * gelu_slope(kept["gate"])
        dvalue = dproduct * gelu(kept["gate"])
        dg = self._linear_backward(f"{here}.mlp.fc0", dgate, kept["g"], found)
        dg = dg + self._linear_backward(f"{here}.mlp.fc1", dvalue, kept["g"], found)
        dx = dx + self._norm_backward(f"{here}.final_layer_norm", dg, kept["middle"], found)

        da = self._split(self._linear_backward(f"{here}.attention.out_proj", dx, kept["a"], found))
        dv = kept["weights"].swapaxes(-1, -2) @ da
        dweights = da @ kept["v"].swapaxes(-1, -2)
        dscores = kept["weights"] * (dweights - (dweights * kept["weights"]).sum(-1, keepdims=True))
        dscores = dscores / np.sqrt(self.config.head_size)
        dq = rope(dscores @ kept["k"], self.config.rope_theta, back=True)
        dk = rope(dscores.swapaxes(-1, -2) @ kept["q"], self.config.rope_theta, back=True)
        dh = self._linear_backward(f"{here}.attention.q_proj", self._join(dq), kept["h"], found)
        dh = dh + self._linear_backward(f"{here}.attention.k_proj", self._join(dk), kept["h"], found)
        dh = dh + self._linear_backward(f"{here}.attention.v_proj", self._join(dv), kept["h"], found)
        return dx + self._norm_backward(f"{here}.layer_norm", dh, kept["x"], found)

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _linear_backward(self, name: str, dy: Array, x: Array, found: Weights) -> Array:
        found[f"{name}.weight"] = np.einsum("bto,bti->oi", dy, x)
        found[f"{name}.bias"] = dy.sum((0, 1))
        return dy @ self.weights[f"{name}.weight"]

    def _norm(self, name: str, x: Array) -> Array:
        return norm(x, self.weights[f"{name}.gamma"], self.weights[f"{name}.beta"], self.config.layernorm_epsilon)

    def _norm_backward(self, name: str, dy: Array, x: Array, found: Weights) -> Array:
        gamma = self.weights[f"{name}.gamma"]
        dx, found[f"{name}.gamma"], found[f"{name}.beta"] = norm_backward(dy, x, gamma, self.config.layernorm_epsilon)
        return dx

    def _split(self, x: Array) -> Array:
        """(B, T, C) -> (B, H, T, D)"""
        batch, tokens, _ = x.shape
        return x.reshape(batch, tokens, self.config.num_heads, self.config.head_size).transpose(0, 2, 1, 3)

    def _join(self, x: Array) -> Array:
        """(B, H, T, D) -> (B, T, C)"""
        batch, _, tokens, _ = x.shape
        return x.transpose(0, 2, 1, 3).reshape(batch, tokens, self.config.hidden_size)


def norm(x: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * gamma + beta


def norm_backward(dy: Array, x: Array, gamma: Array, epsilon: float) -> tuple[Array, Array, Array]:
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    normal = centred / deviation
    dnormal = dy * gamma
    dx = dnormal - dnormal.mean(-1, keepdims=True) - normal * (dnormal * normal).mean(-1, keepdims=True)
    return dx / deviation, (dy * normal).sum((0, 1)), dy.sum((0, 1))


def rope(z: Array, theta: float, back: bool = False) -> Array:
    """Rotate (..., T, D) by the positions 0..T-1, or turn it back."""
    tokens, size = z.shape[-2:]
    frequency = theta ** (-2.0 * np.arange(size // 2) / size)
    angles = np.arange(tokens)[:, None] * np.concatenate((frequency, frequency))
    turned = np.concatenate((-z[..., size // 2 :], z[..., : size // 2]), -1)
    return z * np.cos(angles) + turned * np.sin(-angles if back else angles)


def seen(tokens: int, window: int) -> Array:
    """(T, T) bool: query i sees keys j with i - window < j <= i"""
    i, j = np.arange(tokens)[:, None], np.arange(tokens)[None, :]
    return (i - window < j) & (j <= i)


def attention_weights(q: Array, k: Array, window: int) -> Array:
    """(..., T, D) twice -> (..., T, T)"""
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    scores = np.where(seen(q.shape[-2], window), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention(q: Array, k: Array, v: Array, window: int) -> Array:
    """(B, H, T, D) three times, rotated -> (B, H, T, D)"""
    return attention_weights(q, k, window) @ v


def gelu(z: Array) -> Array:
    return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def gelu_slope(z: Array) -> Array:
    tanh = np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))
    inner = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * z**2)
    return 0.5 * (1 + tanh) + 0.5 * z * (1 - tanh**2) * inner


def cross_entropy(logits: Array, targets: Array, mask: Array) -> tuple[float, Array]:
    """The masked mean of the negative log likelihood, and its gradient by the logits (B, T, V)."""
    highest = logits.max(-1, keepdims=True)
    log_sum = highest + np.log(np.exp(logits - highest).sum(-1, keepdims=True))
    log_probabilities = logits - log_sum
    picked = np.take_along_axis(log_probabilities, targets[..., None], -1)[..., 0]
    weight = mask / (mask.sum() + 1e-5)
    hot = np.zeros_like(logits)
    np.put_along_axis(hot, targets[..., None], 1.0, -1)
    return float(-(weight * picked).sum()), (np.exp(log_probabilities) - hot) * weight[..., None]


def random_weights(config: SparkConfig, seed: int, deviation: float = 0.2) -> Weights:
    """Weights that leave nothing out: norms, biases and scores far from their neutral values."""
    from spark13b.model.names import expected_shapes

    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_shapes(config).items():
        middle = 1.0 if name.endswith(".gamma") else 0.0
        weights[name] = (middle + deviation * rng.standard_normal(shape)).astype(np.float32)
    return weights
