"""Numbers out of range, and choices that there are not."""

from tests.scripts.mistakes.cases import Bad

# fmt: off


def of_numbers(numbers, script, **given):
    """A row for each value of tables like `NUMBERS`."""
    for name, values, says in numbers:
        for value in values:
            line = f"{name} {says}".replace(" …", "…").replace("{}", str(value))
            yield Bad(f"{name} {value}", script, {**given, name: value}, line)


# ---- numbers out of range: argument, values, what the line says of each of them ({})

NUMBERS = [
    ("initial_rank", [0, -3], "must be at least 2, got {}. The paper uses 8."),
    ("initial_rank", [1], "must be at least 2 (with softmax a single component has α = 1, … got {}"),
    ("initial_rank", [10**9], "must be at most 4096, got {}"),
    ("hypergradient_interval", [0, -1], "must be at least 1, got {}. The paper uses 1."),
    ("inner_lr", [-1, "nan", "inf"], "must be zero or a positive number, got {}"),
    ("finite_difference_radius", [0, -0.01, "nan", "inf"], "must be a positive number, got {}"),
    ("selection_learning_rate", [0, -1, "nan", "inf"], "must be a positive number, got {}"),
    ("val_fraction", [0, 1, -0.5, 1.5, "nan"], "must be between 0 and 1 (both splits need examples), got {}…0.5."),
    ("threshold", ["nan", "inf"], "must be a finite number, got {}. The paper uses 1/initial_rank."),
    ("size", [0, -5, "lora:0", "lora:-1", "lora:", "lora:1.5", "many", "nan", "1e3", "9" * 20],
     "must be a number of adapter parameters or lora:R, got '{}', e.g. lora:4."),
    ("size", ["lora:9"], "{} asks for 4,032 adapter parameters, and rank 4 in … Lower size or"),
    ("size", [1], "{} is 1 adapter parameters, and the least … is 32. Raise size."),
    ("min_rank", [-1, 2], "must be 0 or 1, got {}"),
    ("search_look_steps", [-1], "must be at least 0, got {}"),
    ("max_lora_rank", [0], "must be at least 1, got {}"),
    ("tolerance", [-0.1, 1], "must be at least 0 and below 1, got {}"),
    ("search_learning_rate", [0, -1, "nan", "inf"], "must be a positive number, got {}"),
    ("search_epochs", [0, -1, "nan", "inf"], "must be a positive number, got {}"),
    ("search_max_steps", [0, -2], "must be at least 1, or -1 for its default, got {}"),
    ("retrain_epochs", [0, -1, "nan", "inf"], "must be a positive number, got {}"),
    ("retrain_cut", [-0.1, 1, "nan"], "must be at least 0 and below 1, got {}"),
    ("lora_r", [0, -4], "must be at least 1, got {}"),
    ("lora_r", [10**9], "must be at most 4096, got {}"),
    ("lora_alpha", [0, -16], "must be at least 1, got {}"),
    ("lora_dropout", [-0.1, 1, "nan"], "must be at least 0 and below 1, got {}"),
    ("learning_rate", [0, -1, "nan", "inf"], "must be a positive number, got {}"),
    ("num_train_epochs", [0, -1, "nan", "inf"], "must be a positive number, got {}"),
    ("max_steps", [0, -2], "must be at least 1, or -1 for its default, got {}"),
    ("per_device_train_batch_size", [0, -1], "must be at least 1, got {}"),
    ("per_device_eval_batch_size", [0], "must be at least 1, got {}"),
    ("gradient_accumulation_steps", [0, -1], "must be at least 1, got {}"),
    ("weight_decay", [-0.1, "nan", "inf"], "must be at least 0, got {}"),
    ("warmup_steps", [-1, "nan", "inf"], "must be at least 0, got {}"),
    ("max_grad_norm", [-1, "nan"], "must be at least 0, got {}"),
    ("adam_beta1", [1, -0.1, "nan"], "must be at least 0 and below 1, got {}"),
    ("adam_beta2", [1, 1.5, "nan"], "must be at least 0 and below 1, got {}"),
    ("adam_epsilon", [0, -1, "nan"], "must be a positive number, got {}"),
    ("label_smoothing_factor", [-0.1, 1.5, "nan"], "must be at least 0 and below 1, got {}"),
    ("logging_steps", [0, -1, "nan"], "must be a positive number, got {}"),
    ("logging_steps", [1.5], "must be an integer if bigger than 1: {}"),
    ("save_steps", [0, -1, "nan"], "must be a positive number, got {}"),
    ("save_total_limit", [0, -1], "must be at least 1, got {}"),
    ("seed", [-1, 2**40], "must be from 0 to 4294967295, got {}"),
    ("data_seed", [-1], "must be from 0 to 4294967295, got {}"),
    ("dataloader_num_workers", [-1, 100000], "must be from 0 to 1024, got {}"),
    ("max_seq_length", [0, -1, 3], "must be at least 4, got {}"),
    ("max_train_samples", [0, -1], "must be at least 1, got {}"),
    ("sample_seed", [-1, 2**32], "must be from 0 to 4294967295, got {}"),
    ("max_eval_samples", [0], "must be at least 1, got {}"),
    ("max_predict_samples", [0], "must be at least 1, got {}"),
    ("initial_rank", [1.5, "nan", "eight"], "…invalid int value: '{}'; --help lists the arguments"),
    ("hypergradient_interval", [0.5, "inf"], "…invalid int value: '{}'; --help lists the arguments"),
    ("lora_alpha", ["nan"], "…invalid int value: '{}'; --help lists the arguments"),
    ("max_steps", [1.5], "…invalid int value: '{}'; --help lists the arguments"),
    ("seed", ["x"], "…invalid int value: '{}'; --help lists the arguments"),
    ("inner_lr", ["fast"], "…invalid float value: '{}'; --help lists the arguments"),
    ("val_fraction", ["half"], "…invalid float value: '{}'; --help lists the arguments"),
    ("learning_rate", ["1e-4x"], "…invalid float value: '{}'; --help lists the arguments"),
]
NUMBERS_OF_ADAPTERS = [
    ("adapter_size", [0, -1], "must be at least 1, got {}"),
    ("adapter_size", [10**12], "must be at most 65536, got {}"),
    ("adapter_size", [1.5], "…invalid int value: '{}'; --help lists the arguments"),
]
NUMBERS_OF_GRIDS = [("grid_trials", [0, -1], "must be at least 1, got {}")]
NUMBERS_OF_TEXTS = [
    ("num_beams", [0, -1], "must be at least 1, got {}"),
    ("length_penalty", ["nan", "inf"], "must be a finite number, got {}. LoRA used 0.8."),
    ("no_repeat_ngram_size", [-1], "must be at least 0, got {}"),
    ("max_new_tokens", [0], "must be at least 1, got {}"),
    ("generation_batch_size", [0], "must be at least 1, got {}"),
    ("base_dropout", [-0.1, 1, "nan"], "must be at least 0 and below 1, got {}"),
]


# ---- choices that there are not: argument, value, what the line says

CHOICES = [
    ("task_name", "sst-2", "must be one of cola, sst2, … got 'sst-2'. Did you mean sst2?"),
    ("method", "autolroa", "must be one of autolora, lora, … got 'autolroa'. Did you mean autolora?"),
    ("preset", "papper", "must be one of paper, got 'papper'. Did you mean paper?"),
    ("constraint", "softmx", "must be one of softmax, sigmoid, none, got 'softmx'. Did you mean softmax?"),
    ("gate_scaling", "papr", "must be one of plain, paper, got 'papr'. Did you mean paper?"),
    ("hypergradient", "finite-difference", "must be one of … Did you mean finite_difference?"),
    ("finite_difference", "onesided", "must be one of central, one_sided, got 'onesided'. Did you mean one_sided?"),
    ("virtual_step", "adam", "must be one of sgd, adamw, got 'adam'. Did you mean adamw?"),
    ("rank_rule", "contribution", "must be one of … got 'contribution'. Did you mean contributions?"),
    ("scaling", "constnat", "must be one of constant, paper, got 'constnat'. Did you mean constant?"),
    ("retrain_init", "scrach", "must be one of scratch, search, got 'scrach'. Did you mean scratch?"),
    ("dtype", "float16", "must be one of float32, bfloat16, got 'float16'. Did you mean"),
    ("optim", "adamw", "invalid choice: 'adamw' (choose from 'adamw_torch', … --help lists the arguments"),
    ("lr_scheduler_type", "liner", "…invalid choice: 'liner' (choose from 'linear', … --help lists the arguments"),
    ("save_strategy", "step", "…invalid choice: 'step' (choose from 'no', 'steps', 'epoch', 'best'); --help lists"),
    ("eval_strategy", "epochs", "…invalid choice: 'epochs' (choose from 'no', 'steps', 'epoch'); --help lists"),
    ("logging_strategy", "step", "…invalid choice: 'step' (choose from 'no', 'steps', 'epoch'); --help lists"),
    ("train_sampling_strategy", "length", "…invalid choice: 'length' (choose from … --help lists"),
    ("log_level", "loud", "…invalid choice: 'loud' (choose from 'detail', 'debug', … --help lists the arguments"),
    ("report_to", "tensorbord", "tensorbord: tensorbord is not supported, only … tensorboard, … are supported"),
    ("attn_implementation", "sdap", '…="sdap"` is not supported. The only possible arguments are …"eager"'),
    ("bf16", "maybe", "Truthy value expected: got maybe but expected one of yes/no, … --help lists the arguments"),
    ("overwrite", "perhaps", "Truthy value expected: got perhaps but expected one of yes/no, … --help lists"),
]
