"""Row-wise layers for the CPU, made of the operators that MindSpore runs fast there, with their gradients.

There LayerNorm costs four times what this one does, its gradient and that of GELU as well, and an addition that
broadcasts a row or a column three times one of equal shapes (benchmarks/cpu_operators.py). So vectors are spread over
a matrix by an outer product with ones, and gathered from it by a product with a row of ones.

Cells with a `bprop` use primitives only: MindSpore 2.9 cannot compile a Python function that both `construct` and
`bprop` call ("The func graph is empty").
"""

from __future__ import annotations

from typing import Any

from mindspore import nn, ops


class CpuLayerNorm(nn.Cell):
    """y = (x - mean) / sqrt(var + eps) * gamma + beta over the last axis of x (N, C), all float32."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.matmul = ops.MatMul()
        self.mean = ops.ReduceMean(keep_dims=True)
        self.rsqrt = ops.Rsqrt()
        self.neg = ops.Neg()
        self.ones = ops.Ones()

    def centred(self, x: Any) -> tuple[Any, Any]:
        """x - mean, (N, C), and 1 / sqrt(var + eps), (N, 1)"""
        centred = x + self.matmul(self.neg(self.mean(x, -1)), self.ones((1, x.shape[1]), x.dtype))
        return centred, self.rsqrt(self.mean(centred * centred, -1) + self.epsilon)

    def construct(self, x: Any, gamma: Any, beta: Any) -> Any:
        centred, scale = self.centred(x)
        ones_column = self.ones((x.shape[0], 1), x.dtype)
        gain = self.matmul(scale, gamma.reshape((1, -1)))
        return centred * gain + self.matmul(ones_column, beta.reshape((1, -1)))

    def bprop(self, x: Any, gamma: Any, beta: Any, out: Any, dout: Any) -> tuple[Any, Any, Any]:
        """With n = (x - mean) * scale and g = dout * gamma: dx = scale (g - mean(g) - n mean(g n))."""
        centred, scale = self.centred(x)
        ones_row, gathered = self.ones((1, x.shape[1]), x.dtype), self.ones((1, x.shape[0]), x.dtype)
        normal = centred * self.matmul(scale, ones_row)
        dgamma = self.matmul(gathered, dout * normal).reshape(gamma.shape)
        dbeta = self.matmul(gathered, dout).reshape(beta.shape)
        g = dout * self.matmul(scale, gamma.reshape((1, -1)))  # times scale already
        dx = g + self.matmul(self.neg(self.mean(g, -1)), ones_row)
        dx = dx - normal * self.matmul(self.mean(g * normal, -1), ones_row)
        return dx, dgamma, dbeta


class CpuAffine(nn.Cell):
    """y = x W^T + b over x (N, in), W (out, in), with a gradient of b that does not cost more than that of W."""

    def __init__(self) -> None:
        super().__init__()
        self.matmul = ops.MatMul()
        self.matmul_t = ops.MatMul(transpose_b=True)
        self.t_matmul = ops.MatMul(transpose_a=True)
        self.bias_add = ops.BiasAdd()
        self.ones = ops.Ones()

    def construct(self, x: Any, weight: Any, bias: Any) -> Any:
        return self.bias_add(self.matmul_t(x, weight), bias)

    def bprop(self, x: Any, weight: Any, bias: Any, out: Any, dout: Any) -> tuple[Any, Any, Any]:
        ones = self.ones((1, dout.shape[0]), dout.dtype)
        return self.matmul(dout, weight), self.t_matmul(dout, x), self.matmul(ones, dout).reshape(bias.shape)
