"""Settings of the scripts under one name."""

# `--preset paper`: §4 (softmax, 1/k, one virtual SGD step, retrain) and §5.1-5.2 (k=8, rates, batch, split 1:1);
# LoRA's own settings are those of the paper's code (lora_alpha 16 at a fixed value, dropout 0.1). Where the paper is
# silent: default.
PRESETS = {
    "paper": {
        "initial_rank": 8,
        "constraint": "softmax",
        "gate_scaling": "paper",
        "rank_rule": "threshold",
        "min_rank": 1,
        "val_fraction": 0.5,
        "hypergradient": "finite_difference",
        "finite_difference": "central",
        "hypergradient_interval": 1,
        "virtual_step": "sgd",
        "search_learning_rate": 1e-4,
        "selection_learning_rate": 1e-3,
        "search_patience": 0,
        "search_epochs": 1.0,
        "scaling": "paper",
        "retrain_init": "scratch",
        "retrain_cut": 0.0,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 16,
        "optim": "adamw_torch",
        "lora_alpha": 16,
        "lora_dropout": 0.1,
    }
}
