"""All methods by their names, and what is asked of all of them at once."""

from autolora_trainer.methods.adalora import AdaLora
from autolora_trainer.methods.adapter import Adapter
from autolora_trainer.methods.autolora import AutoLora
from autolora_trainer.methods.base import PEFT_ADAPTER, Method, SavedForm
from autolora_trainer.methods.eva import Eva
from autolora_trainer.methods.grid import Grid
from autolora_trainer.methods.lora import Full, Lora
from autolora_trainer.methods.patterns import LINEAR, RANDOM, UNIFORM
from autolora_trainer.methods.peft_types import SHORT, PeftTypes
from autolora_trainer.methods.svd import Svd

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *(AutoLora(), Lora(), Full(), Adapter(), AdaLora(), Eva(), Grid(), UNIFORM, RANDOM, LINEAR, Svd()),
        *(PeftTypes("peft"), *(PeftTypes(name, peft_type) for name, peft_type in SHORT.items())),
    )
}
# the more particular first: an adapter of AdaLoRA is one of PEFT's too
FORMS: list[SavedForm] = sorted(
    dict.fromkeys(method.form for method in METHODS.values()), key=lambda form: form is PEFT_ADAPTER
)
OUTPUTS = frozenset().union(*(method.outputs for method in METHODS.values()))


def owners(argument: str) -> list[str]:
    """The methods whose own argument this is; none of one that methods share.

    Example:
        >>> owners("adapter_size"), owners("lora_alpha")
        (['adapter'], [])
    """
    owned = (method for method in METHODS.values() if method.arguments is not None)
    return [method.name for method in owned if argument in method.arguments.__dataclass_fields__]
