"""What each aten op is, as far as precision goes: the tables that taps, trackers and watchers choose ops by."""

from __future__ import annotations

POINTWISE = frozenset(
    "add sub mul div neg abs pow square sqrt rsqrt exp exp2 expm1 log log1p log2 reciprocal sigmoid "
    "tanh clamp clamp_min clamp_max where masked_fill maximum minimum lerp addcmul addcdiv relu gelu "
    "silu softplus round floor ceil rsub threshold hardtanh sign erf fmod remainder logical_not ne "
    "eq gt lt ge le sin cos _foreach_add _foreach_sub _foreach_mul _foreach_div _foreach_lerp "
    "_foreach_addcmul _foreach_addcdiv _foreach_sqrt _foreach_reciprocal _foreach_neg _foreach_pow "
    "_foreach_clamp_min _foreach_clamp_max _foreach_maximum _foreach_minimum".split()
)
SHAPING = frozenset(
    "cat stack index index_select gather clone _to_copy contiguous repeat flip roll masked_select "
    "scatter constant_pad_nd tril triu index_put slice_scatter select_scatter _unsafe_index "
    "lift_fresh".split()
)
REDUCING = frozenset("sum mean amax amin prod nansum max min var std var_mean std_mean logsumexp topk sort".split())
NORMS = frozenset("linalg_vector_norm norm _foreach_norm".split())
MATMULS = frozenset(
    "mm addmm bmm baddbmm addbmm mv dot convolution _scaled_mm _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_cudnn_attention mkldnn_convolution linear _convolution".split()
)
LOSS_KERNELS = frozenset(
    "mse_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits soft_margin_loss".split()
)
"""Losses of a value and a target that are one op."""
BATCH_NORMS = frozenset(
    "native_batch_norm _native_batch_norm_legit cudnn_batch_norm miopen_batch_norm "
    "_batch_norm_with_update batch_norm_gather_stats_with_counts batch_norm_gather_stats".split()
)
SELF_UPDATES = frozenset(
    f"{prefix}{name}"
    for name in ("add_", "sub_", "mul_", "div_", "lerp_", "addcmul_", "addcdiv_")
    for prefix in ("", "_foreach_")
)
ADDITIONS = frozenset({"add_", "sub_", "_foreach_add_", "_foreach_sub_"})
RESETS = frozenset({"zero_", "fill_", "_foreach_zero_", "normal_", "uniform_", "set_", "resize_"})
COPIES = frozenset({"copy_", "_foreach_copy_"})
CUDA_FLOAT32 = {
    name: name
    for name in (
        "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow softplus dist renorm "
        "logsumexp norm prod cumprod cumsum sum".split()
    )
} | {
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "_fused_rms_norm": "rms_norm",
    "linalg_vector_norm": "vector_norm",
    "_pdist_forward": "pdist",
    "_cdist_forward": "cdist",
    "upsample_nearest1d": "interpolate",
    "upsample_nearest2d": "interpolate",
    "upsample_bilinear2d": "interpolate",
    "upsample_bicubic2d": "interpolate",
}
"""Aten op -> its name on CUDA autocast's float32 list; CPU autocast leaves these low, losses excepted."""
REDUCTION_COLLECTIVES = frozenset(
    "allreduce_ allreduce_coalesced_ reduce_ reduce_scatter_ _reduce_scatter_base_ "
    "reduce_scatter_tensor_coalesced_ all_reduce all_reduce_ all_reduce_coalesced "
    "reduce_scatter_tensor reduce_scatter_tensor_coalesced".split()
)
"""Ops of c10d and _c10d_functional that add tensors over ranks; gathers and broadcasts move them unchanged."""
