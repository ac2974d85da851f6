# %% [markdown]
# # Quick start
#
# Ranks for a training, the training, and an adapter made smaller: some minutes on a CPU, offline, on the built-in
# sample. With a model and rows of your own the same cells hold; only the next one is another.
#
# Install it in a clone of the repository, `pip install .`, and take this page as a notebook:
# [quickstart.ipynb](quickstart.ipynb).

# %% [markdown]
# ## Rows and a model
#
# A task of two classes with generated rows, and an encoder of 2.6 million parameters that comes with the package. On
# the Hub it would be `from_pretrained("owner/name")` and `load_dataset("owner/rows")`.

# %%
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from autolora_trainer.sample import encoder_path, load_sample

tokenizer = AutoTokenizer.from_pretrained(encoder_path())
rows = load_sample().map(lambda row: tokenizer(row["sentence"]), batched=True).rename_column("label", "labels")


def fresh_model():
    return AutoModelForSequenceClassification.from_pretrained(encoder_path())


# %% [markdown]
# ## Find ranks
#
# One call before the training. `args` are those of the training: its rate, its batch, its precision. The search trains a
# LoRA of rank 8 for a while and asks held-out rows which of its components they need; what comes out is a plain
# `peft.LoraConfig`. This small encoder learns late, so its search gets 200 steps; without `search_steps` a search ends
# when it has settled, after 112 steps at most.

# %%
from peft import LoraConfig

from autolora_trainer import RankSearch

args = TrainingArguments(
    "outputs/quickstart",
    learning_rate=1e-3,
    per_device_train_batch_size=32,
    max_steps=250,
    lr_scheduler_type="linear",
    use_cpu=True,
    logging_steps=50,
    save_strategy="no",
    report_to="none",
)
lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", lora_alpha=32)
search = RankSearch(fresh_model(), rows["train"], lora, args=args, processing_class=tokenizer, search_steps=200)
config = search.run().config  # find_ranks(...) with the same arguments gives this at once
print(search.ranks)

# %% [markdown]
# A row of the grid is a projection, a column a block, a number a rank ([how to read it](explanation/heatmap.md)). The
# picture says what each size keeps of what the search has learned, and which was chosen.

# %%
search.plot()

# %% [markdown]
# ## Train
#
# An ordinary training, by whatever trains: `config` has a `rank_pattern` and one scale for all modules.

# %%
from peft import get_peft_model

from autolora_trainer import fix_loss_scale

model = get_peft_model(fresh_model(), config)
trainer = Trainer(model, args, train_dataset=rows["train"], processing_class=tokenizer)
fix_loss_scale(trainer).train()  # matters with gradient accumulation alone
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
# In a shell `autolora show adapter` prints the same, and what a server needs.
#
# ## Make it smaller
#
# A trained adapter, cut to what held-out rows need of it: here within 5 % of its loss.

# %%
from autolora_trainer import compress

small = compress(model, rows["validation"], processing_class=tokenizer, args=args, tolerance=0.05)
print(small)
small.save_pretrained("small")

# %% [markdown]
# ## Use it
#
# What was saved is PEFT's: it loads without this package, merges, and is served like any other
# ([servers](integrations/serving.md)).

# %%
from peft import PeftModel

loaded = PeftModel.from_pretrained(fresh_model(), "small")
loaded.merge_and_unload()

# %% [markdown]
# Next: [the same in your own tool](integrations/trl.md), [how large an adapter](guides/choose_size.md),
# [how it works](explanation/how_it_works.md).
