"""How the network's operations are computed; what the network computes is in ``model/``.

Each operation has one signature, given here, and several forms: ``reference`` in the paper's order, ``default`` for any
device, for some of them forms that are faster on a CPU (``cpu_*``) or in another runtime (``graph``). ``choice`` picks one.
Every form is tested against the reference in float64.

Axes: b batch, t task, n positions, c d e o channels, k tokens or keys, m pooled positions, h w a map. In
memory a position comes before its tasks and a task before its channels, (b n t c); any other order is slower, not wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from mtlsi.kernels import choice, cpu_attention, cpu_linear, cpu_tokens, default, graph, probes, reference
from mtlsi.kernels.choice import OPERATIONS, CPUForm, Operation, choose, use

__all__ = [
    "assign_tokens",
    "attend_and_expand",
    "attention",
    "block_conv",
    "dense_conv",
    "global_context",
    "project",
    "separable_conv",
    "task_linear",
    "task_linear_chunks",
    "task_linear_concat",
    "use",
]

Affine = tuple[Float[Tensor, "t d"], Float[Tensor, "t d"]]
"""Gain and offset of a norm with stored statistics, per task and channel: x * gain + offset."""


def task_linear(
    x: Float[Tensor, "b t n c"], weight: Float[Tensor, "t c d"], bias: Float[Tensor, "t 1 d"] | None = None
) -> Float[Tensor, "b t n d"]:
    """A linear map of its own for every task: y_t = x_t W_t + b_t."""
    return choose("task_linear", x, weight, bias)(x, weight, bias)


def task_linear_chunks(
    x: Float[Tensor, "b t n c"], weight: Float[Tensor, "t c d"], bias: Float[Tensor, "t 1 d"], num_chunks: int
) -> tuple[Float[Tensor, "b t n _"], ...]:
    """``task_linear``, its channels cut into equal chunks: queries, keys and values, say."""
    return choose("task_linear_chunks", x, weight, bias, num_chunks)(x, weight, bias, num_chunks)


def task_linear_concat(
    inputs: Sequence[Float[Tensor, "b t n _"]], weight: Float[Tensor, "t c d"], bias: Float[Tensor, "t 1 d"]
) -> Float[Tensor, "b t n d"]:
    """``task_linear`` of the inputs concatenated along their channels."""
    return choose("task_linear_concat", inputs, weight, bias)(inputs, weight, bias)


def attention(
    queries: Float[Tensor, "b t n c"],
    keys: Float[Tensor, "b t k c"],
    values: Float[Tensor, "b t k c"],
    num_heads: int,
    mask: Bool[Tensor, "b 1 1 k"] | None = None,
) -> Float[Tensor, "b t n c"]:
    """softmax(Q K^T / sqrt(d)) V per task and head; ``mask`` is True on the keys that count.

    Linear in n for a fixed number k of keys.
    """
    return choose("attention", queries, keys, values, num_heads, mask)(queries, keys, values, num_heads, mask)


def global_context(
    keys: Float[Tensor, "b t m c"], values: Float[Tensor, "b t m c"], num_heads: int
) -> tuple[Float[Tensor, "b heads d d"], Float[Tensor, "b heads d"]]:
    """C = mean_m phi(k_m) v_m^T and z = mean_m phi(k_m) over the positions of all tasks; phi(x) = elu(x) + 1.

    Float32 or wider, also under autocast. A mean in place of the sum leaves the attention unchanged and in range.
    """
    return choose("global_context", keys, values, num_heads)(keys, values, num_heads)


def attend_and_expand(
    queries: Sequence[Float[Tensor, "b t n c"]],
    context: Float[Tensor, "b heads d d"],
    normaliser: Float[Tensor, "b heads d"],
    weight: Float[Tensor, "t sc o"],
    bias: Float[Tensor, "t 1 o"],
) -> Float[Tensor, "b t n o"]:
    """concat_s(phi(Q_s) C / phi(Q_s) z) W + b: linear attention at each scale s, then a linear map of all scales.

    Equal to the attention whose matrix is phi(q_n) . phi(k_m), divided by its row sums; that n x m matrix is never formed.
    """
    arguments = (queries, context, normaliser, weight, bias)
    return choose("attend_and_expand", *arguments)(*arguments)


def assign_tokens(
    hidden: Float[Tensor, "b t n c"],
    features: Float[Tensor, "b t n e"],
    weight: Float[Tensor, "t c k"],
    bias: Float[Tensor, "t 1 k"],
) -> Float[Tensor, "b t k e"]:
    """softmax_k(H W + b)^T X: each position is shared out to k tokens, a token is the sum of what it gets.

    Sums in float32 or wider.
    """
    return choose("assign_tokens", hidden, features, weight, bias)(hidden, features, weight, bias)


def separable_conv(
    x: Float[Tensor, "b t c h w"],
    spatial: Float[Tensor, "t c 1 3 3"],
    weight: Float[Tensor, "t c d"],
    bias: Float[Tensor, "t 1 d"],
    affine: Affine | None = None,
) -> Float[Tensor, "b t d h w"]:
    """Within each task a depthwise 3x3 convolution, then a 1x1 one, then the norm ``affine`` where it is given."""
    arguments = (x, spatial, weight, bias, affine)
    return choose("separable_conv", *arguments)(*arguments)


def dense_conv(
    x: Float[Tensor, "b t c h w"], spatial: Float[Tensor, "t d c 3 3"], affine: Affine | None = None
) -> Float[Tensor, "b t d h w"]:
    """Within each task a 3x3 convolution, then the norm ``affine`` where it is given."""
    return choose("dense_conv", x, spatial, affine)(x, spatial, affine)


def project(
    x: Float[Tensor, "b c h w"], weight: Float[Tensor, "t d c 1 1"], affine: Affine | None = None
) -> Float[Tensor, "b t d h w"]:
    """One map through a 1x1 convolution of each task, then the norm ``affine`` where it is given."""
    return choose("project", x, weight, affine)(x, weight, affine)


def block_conv(
    x: Float[Tensor, "b i h w"],
    weights: Sequence[Float[Tensor, "_ _"]],
    biases: Sequence[Float[Tensor, " _"]] | None = None,
) -> Float[Tensor, "b o h w"]:
    """Each group of channels through a 1x1 convolution of its own, weight (out in); the results side by side."""
    return choose("block_conv", x, weights, biases)(x, weights, biases)


for _name in __all__[:-1]:
    OPERATIONS[_name] = Operation(getattr(reference, _name), getattr(default, _name), graph=getattr(graph, _name, None))

for _name in ("task_linear", "task_linear_chunks", "task_linear_concat"):
    OPERATIONS[_name].cpu.append(CPUForm("cpu_grouped", getattr(cpu_linear, _name), choice.always, probes.linear))
OPERATIONS["attend_and_expand"].cpu.append(
    CPUForm("cpu_per_image", cpu_attention.attend_and_expand, choice.loops_over_images, probes.expansion)
)
OPERATIONS["assign_tokens"].cpu.append(
    CPUForm("cpu_chunked_tokens", cpu_tokens.assign_tokens, choice.has_own_backward, probes.assignment)
)
OPERATIONS["attention"].cpu += [
    CPUForm(
        "cpu_written_out_to_train",
        cpu_attention.written_out,
        cpu_attention.is_trained_in_bf16,
        probes.attention_to_train,
    ),
    CPUForm("cpu_written_out", cpu_attention.written_out, cpu_attention.is_bf16_with_few_keys, probes.attention_to_few),
    CPUForm(
        "cpu_chunked_attention",
        cpu_attention.chunked,
        cpu_attention.has_many_keys_and_wide_heads,
        probes.attention_to_many,
    ),
]
