"""What the group-sampling trainers (GRPO, RLOO) log alike."""

from ._base import Term

TERMS = (
    Term("reward", "reward_mean"),
    Term("reward_std", "reward_std", "reward, mean of the deviations within groups", trl="<0.27"),
    Term("reward_std", "reward_std", "reward, deviation over the whole batch", trl=">=0.27"),
    Term("frac_reward_zero_std", "frac_zero_std"),
    Term("entropy", "entropy_mean"),
    Term("clip_ratio/region_mean", "clip_frac"),
    Term("clip_ratio", "clip_frac"),
    Term("clip_ratio/low_mean", "clip_frac_low"),
    Term("clip_ratio/low_min", "clip_frac_low_min"),
    Term("clip_ratio/high_mean", "clip_frac_high"),
    Term("clip_ratio/high_max", "clip_frac_high_max"),
    Term("cispo_clip_ratio", "cispo_clip_frac"),
    Term("completions/mean_length", "length_mean"),
    Term("completion_length", "length_mean"),  # TRL up to 0.16, and streams recorded then
    Term("completions/min_length", "length_min"),
    Term("completions/max_length", "length_max"),
    Term("completions/mean_terminated_length", "length_terminated_mean"),
    Term("completions/min_terminated_length", "length_terminated_min"),
    Term("completions/max_terminated_length", "length_terminated_max"),
    Term("completions/clipped_ratio", "truncated_frac"),
    Term("sampling/sampling_logp_difference/mean", "sampler_logp_diff_mean"),
    Term("sampling/sampling_logp_difference/max", "sampler_logp_diff_max"),
    Term("sampling/importance_sampling_ratio/min", "sampler_ratio_min"),
    Term("sampling/importance_sampling_ratio/mean", "sampler_ratio_mean"),
    Term("sampling/importance_sampling_ratio/max", "sampler_ratio_max"),
    Term("tools/call_frequency", "tool_calls"),
    Term("tools/failure_frequency", "tool_failures"),
    Term("policy_loss", "policy_loss"),
    Term("entropy_coef", "entropy_coef"),
)
