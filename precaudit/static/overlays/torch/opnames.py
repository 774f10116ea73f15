"""PyTorch's operations, sorted by what they do to dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precaudit.model.vocabulary import FLOATING

if TYPE_CHECKING:
    pass

DTYPE_NAMES = {
    **{name: name for name in FLOATING},
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "int8": "int8",
    "int16": "int16",
    "int32": "int32",
    "int64": "int64",
    "long": "int64",
    "int": "int32",
    "short": "int16",
    "uint8": "uint8",
    "bool": "bool",
    "float8_e4m3fnuz": "float8_e4m3fn",
}
"""torch.<name> -> dtype."""


CASTS = {"half": "float16", "bfloat16": "bfloat16", "float": "float32", "double": "float64"} | {
    "long": "int64",
    "int": "int32",
    "bool": "bool",
    "short": "int16",
    "char": "int8",
    "byte": "uint8",
}
"""Tensor methods that cast."""


VIEWS = frozenset(
    """
    view reshape permute transpose flatten unflatten squeeze unsqueeze contiguous expand expand_as view_as
    repeat t swapaxes swapdims movedim narrow select index_select gather take_along_dim roll flip cpu cuda
    pin_memory requires_grad_ clone triu tril diag diagonal broadcast_to repeat_interleave as_strided unfold
    rot90 masked_select wait xpu npu reshape_as T mT H moveaxis ravel alias detach detach_ index_copy fold
    sort msort retain_grad
    """.split()
)


SAME = frozenset(
    """
    relu relu_ gelu silu tanh sigmoid leaky_relu elu selu celu mish hardswish hardsigmoid relu6 dropout
    dropout1d dropout2d dropout3d alpha_dropout abs neg sign floor ceil round clamp clip clamp_min clamp_max
    sin cos sqrt square pad max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d glu erf log_sigmoid logsigmoid nan_to_num
    positive frac trunc diff cummax amax amin mean median var std softsign tanhshrink batch_norm instance_norm
    pixel_shuffle atan acos asin sinh cosh tan exp expm1 log log2 log10 log1p rsqrt reciprocal softplus sum
    nansum prod cumsum cumprod logcumsumexp logsumexp norm vector_norm softmax log_softmax softmin layer_norm
    rms_norm group_norm normalize interpolate upsample cosine_similarity pow cdist dist pdist renorm
    gumbel_softmax bernoulli threshold hardtanh
    """.split()
)


MATMULS = frozenset(
    """
    matmul mm bmm mv linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d einsum
    addmm baddbmm addbmm scaled_dot_product_attention outer dot vdot tensordot bilinear multi_dot chain_matmul
    inner
    """.split()
)


POINTWISE = {
    "add": "Add",
    "sub": "Subtract",
    "subtract": "Subtract",
    "mul": "Multiply",
    "multiply": "Multiply",
    "div": "Divide",
    "divide": "Divide",
    "true_divide": "Divide",
    "rsub": "Subtract",
    "maximum": "Max",
    "minimum": "Max",
    "fmod": "Modulo",
    "remainder": "Modulo",
    "addcmul": "Add",
    "addcdiv": "Add",
    "lerp": "Add",
    "where": "Max",
    "cat": "Max",
    "concat": "Max",
    "concatenate": "Max",
    "stack": "Max",
    "hstack": "Max",
    "vstack": "Max",
    "index_add": "Add",
    "scatter_add": "Add",
    "atan2": "Max",
}


OPERATORS = {"Add": "add", "Subtract": "sub", "Multiply": "mul", "Divide": "div", "Modulo": "remainder"}
"""Operator -> the function of torch that it is."""


OF_INTEGERS = frozenset(["sum", "cumsum", "abs", "neg", "clamp", "clip", "prod", "pad", "sign", "amax", "amin"])
"""Operations that leave integers what they are."""


LOSSES = frozenset(
    """
    cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy
    binary_cross_entropy_with_logits poisson_nll_loss cosine_embedding_loss hinge_embedding_loss
    margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss ctc_loss
    gaussian_nll_loss multilabel_soft_margin_loss
    """.split()
)


FACTORIES = frozenset(
    """
    zeros ones full empty rand randn tensor as_tensor arange linspace logspace eye scalar_tensor
    """.split()
)


LIKE = frozenset(["zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"])


NEW = frozenset(["new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"])


PREDICATES = frozenset(
    """
    eq ne lt le gt ge isnan isinf isfinite logical_and logical_or logical_not isin equal isclose any all
    """.split()
)


INTEGER_RESULTS = frozenset(
    """
    argmax argmin argsort nonzero bincount searchsorted bucketize multinomial one_hot randint randperm histc
    """.split()
)


NUMBERS = frozenset(
    """
    item size numel dim ndimension stride element_size nelement tolist
    """.split()
)


PAIRS = frozenset({"topk", "sort", "cummax", "cummin", "kthvalue", "mode"})


TWO_STATISTICS = frozenset({"var_mean", "std_mean"})
"""Operations that give a deviation and a mean."""


SPLITS = frozenset({"chunk", "split", "unbind", "tensor_split", "split_with_sizes"})


REDUCTIONS = frozenset({"sum", "mean", "prod", "norm", "var", "std", "logsumexp", "amax", "amin", "nansum"}) | LOSSES


FLOAT32_MATH = frozenset(
    """
    exp log log1p log2 pow softmax log_softmax sum prod norm cumsum cumprod logsumexp rsqrt var
    """.split()
) | (LOSSES - {"binary_cross_entropy"})
"""What somebody who turns autocast off wants done in float32."""


LINEAR = frozenset({"Add", "Subtract", "Multiply", "Divide", "add", "sub", "mul", "div", "lerp", "stack", "cat"})
"""Operations after which a weight is still a weight, or an average of weights."""

PARTS = frozenset({"created", "weights", "gradient"})
"""The marks of a tensor that a sum remembers as a part of it."""


COMPOSED = {
    "square": "pow",
    "softmin": "softmax",
    "gumbel_softmax": "softmax",
    "multilabel_soft_margin_loss": "sum",
}
"""Operations that are made of another before autocast sees them, so that its table lists only that other one."""
