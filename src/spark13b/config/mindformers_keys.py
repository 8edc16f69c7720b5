"""The keys of the original's MindFormers YAML that a preset does not hold, and why.

Names and meanings were read from MindFormers `research/iflytekspark/*.yaml` and `iflytekspark_config.py`.
"""

from __future__ import annotations

_DECIDES = "spark13b decides this itself"
_COMMAND = "a command's options name data, checkpoints and outputs"
_TOKENIZER = "spark13b reads it from the tokenizer"
_IGNORED = "the original ignores it too"
_ABSENT = "spark13b has nothing like it"
_LENGTH = "counts prompt and answer together; spark13b limits the answer, generation.max_new_tokens"

# Whole sections; a key below is never looked at
SECTIONS: dict[str, str] = {
    "train_dataset": _COMMAND,
    "train_dataset_task": _COMMAND,
    "eval_dataset": _ABSENT,
    "eval_dataset_task": _ABSENT,
    "eval_callbacks": _ABSENT,
    "callbacks": _DECIDES,
    "metric": _ABSENT,
    "processor": _TOKENIZER,
    "trainer": _DECIDES,
    "model.arch": _DECIDES,
    "moe_config": _ABSENT,
    "context.ascend_config": _DECIDES,
    "parallel.strategy_ckpt_config": _DECIDES,
    "parallel.parallel_optimizer_config": _DECIDES,
    "base_config": "files named there are not read; merge them into one first",
}

_TOP = {
    _COMMAND: "output_dir load_checkpoint src_strategy_path_or_dir resume_training auto_trans_ckpt remote_save_url "
    "load_ckpt_format",
    _DECIDES: "use_parallel only_save_strategy micro_batch_interleave_num profile profile_start_step profile_stop_step "
    "init_start_profile profile_communication profile_memory filepath_prefix autotune_per_step auto_tune",
    _ABSENT: "do_eval eval_step_interval eval_epoch_interval",
    _IGNORED: "layer_scale layer_decay lr_scale_factor lr_scale",
}
_NESTED: dict[str, dict[str, str]] = {
    "runner_config": {_DECIDES: "sink_mode sink_size initial_epoch"},
    "optimizer": {_DECIDES: "type", "lr_schedule.learning_rate is used instead": "learning_rate"},
    "lr_schedule": {_ABSENT: "warmup_lr_init num_cycles"},
    "runner_wrapper": {_DECIDES: "type"},
    "parallel_config": {
        _DECIDES: "micro_batch_num vocab_emb_dp gradient_aggregation_group",
        _ABSENT: "pipeline_stage expert_parallel context_parallel",
    },
    "parallel": {
        _DECIDES: "parallel_mode gradients_mean enable_alltoall full_batch search_mode strategy_ckpt_save_file "
        "dataset_strategy loss_repeated_mean",
    },
    "recompute_config": {_DECIDES: "parallel_optimizer_comm_recompute mp_comm_recompute", _ABSENT: "select_recompute"},
    "context": {
        _DECIDES: "mode enable_graph_kernel graph_kernel_flags max_call_depth save_graphs save_graphs_path device_id "
        "memory_optimize_level jit_level mempool_block_size runtime_num_threads",
    },
    "model.model_config": {
        _TOKENIZER: "bos_token_id eos_token_id pad_token_id ignore_token_id",
        _IGNORED: "hidden_act offset eod_reset bias_dropout_fusion skip_bias_add post_layernorm_residual "
        "apply_residual_connection_post_layernorm enable_offload",
        _DECIDES: "type batch_size use_past is_dynamic is_lite_infer parallel_config flash_attention_recompute",
        _ABSENT: "is_reward_model use_moe expert_num",
        _LENGTH: "max_length max_decode_length",
        _COMMAND: "checkpoint_name_or_path",
    },
    "model.model_config.pet_config": {_DECIDES: "param_init_type compute_dtype"},
}

KEYS: dict[str, str] = {
    (f"{section}.{name}" if section else name): reason
    for section, reasons in {"": _TOP, **_NESTED}.items()
    for reason, names in reasons.items()
    for name in names.split()
}
