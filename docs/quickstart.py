# %% [markdown]
# # Quick start
#
# Ranks for a training, the training, and an adapter made smaller: some minutes on a CPU, offline, with what is built in.
# With a model and rows of your own the same cells hold; only the next one is another.
#
# Install it in a clone of the repository, `pip install .`, and take this page as a notebook:
# [quickstart.ipynb](quickstart.ipynb) (in a clone `make docs` writes it).

# %% [markdown]
# ## A model and rows
#
# A language model of 2.6 million parameters that comes with the package, and lines that a grammar writes. From the Hub
# it would be `from_pretrained("owner/name")`, `load_dataset("owner/rows")` and the collator of your training; chats and
# prompts go [through TRL](integrations/trl.md), without one.

# %%
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from autolora_trainer.sample.decoder import lines, save_decoder

save_decoder("base")
(train_rows, held_out_rows, test_rows), collate = lines([1600, 400, 400])


def fresh_model():
    return AutoModelForCausalLM.from_pretrained("base", attn_implementation="eager")


# %% [markdown]
# ## Find ranks
#
# One call before the training. `args` are those of the training: its rate, its batch, its precision. The search trains a
# LoRA of rank 8 for a while and asks held-out rows which of its components they need; what comes out is a plain
# `peft.LoraConfig`. It ends when it has settled, after 112 steps at most.

# %%
from peft import LoraConfig

from autolora_trainer import RankSearch

args = TrainingArguments(
    "outputs/quickstart",
    learning_rate=3e-3,
    warmup_steps=10,
    max_steps=100,
    per_device_train_batch_size=16,
    per_device_eval_batch_size=64,
    logging_steps=50,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
)
lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", exclude_modules=r"lm_head.*", lora_alpha=32)
search = RankSearch(fresh_model(), train_rows, lora, args=args, data_collator=collate, trainer_class=Trainer)
config = search.run().config  # find_ranks(...) with the same arguments gives this at once
print(search.ranks)

# %% [markdown]
# In 22 seconds of one CPU core it printed
#
# ```text
# block                   0  1  2  3  4  5
# query                   2  3  3  4  1  4
# key                     2  3  1  3  2  3
# value                   1  4  4  3  3  2
# attention.output.dense  3  5  7  5  4  4
# intermediate.dense      6  5  8  7  6  4
# output.dense            6  4  5  5  6  1
# total rank 139 in 36 modules, none of them at rank 0
# ```
#
# A row of the grid is a projection, a column a block, a number a rank ([how to read it](explanation/heatmap.md)). The
# picture says what each size keeps of what the search has learned, and which was chosen.

# %%
search.plot()

# %% [markdown]
# ![Held-out loss against adapter parameters, and the size that was found](images/quickstart_curve.svg)
#
# ## Train
#
# An ordinary training, by whatever trains: `config` has a `rank_pattern` and one scale for all modules.

# %%
from peft import get_peft_model

model = get_peft_model(fresh_model(), config)
trainer = Trainer(model, args, data_collator=collate, train_dataset=train_rows, eval_dataset=test_rows)
trainer.train()
print(trainer.evaluate()["eval_loss"])
model.save_pretrained("adapter")

# %% [markdown]
# ## Look at an adapter
#
# Any LoRA adapter, whoever trained it, here or on the Hub; its config and the header of its weights are read, no model.

# %%
from autolora_trainer import LearnedRanks

ranks = LearnedRanks.from_pretrained("adapter")
print(ranks.total_rank, "ranks in", len(ranks.module_ranks), "modules")
ranks.to_pandas().head()

# %% [markdown]
# The training took 14 seconds, and ended at a loss of 2.432 on the test rows.
# In a shell `autolora show adapter` prints the grid, and what a server needs.
#
# ## Make it smaller
#
# A trained adapter, cut to what held-out rows need of it: here within 5 % of its loss.

# %%
from autolora_trainer import compress

small = compress(model, held_out_rows, args=args, data_collator=collate, tolerance=0.05)
print(small)
small.save_pretrained("small")

# %% [markdown]
# ```text
# held-out loss  parameters    MB  largest rank
# -------------  ----------  ----  ------------
#        2.4082      74,720  0.30      8  given
#        2.4874      54,400  0.22             7
#        2.5136      50,880  0.20             6
#        2.5225      49,120  0.20     6  chosen
#        2.5296      48,320  0.19             6
#        2.5320      48,000  0.19             6
#        2.5407      47,360  0.19             6
#        2.6462      40,320  0.16             5
#        3.3337      20,000  0.08             3
#        4.2699      10,240  0.04             2
#        4.9246       4,480  0.02             2
# block                   0  1  2  3  4  5
# query                   2  0  2  3  0  1
# key                     0  1  1  3  0  0
# value                   1  3  2  2  1  0
# attention.output.dense  2  4  5  4  2  2
# intermediate.dense      5  3  6  6  4  3
# output.dense            4  2  5  3  3  1
# total rank 86 in 36 modules, 6 of them at rank 0
# 49,120 of 74,720 parameters (66%), 0.20 of 0.30 MB; a server needs --max-lora-rank 8
# ```
#
# ## Use it
#
# What was saved is PEFT's: it loads without this package, merges, and is served like any other
# ([servers](integrations/serving.md)).

# %%
from peft import PeftModel

merged = PeftModel.from_pretrained(fresh_model(), "small").merge_and_unload()

# %% [markdown]
# Next: [the same in your own tool](integrations/trl.md), [how large an adapter](guides/choose_size.md),
# [how it works](explanation/how_it_works.md).
