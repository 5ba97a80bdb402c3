"""How weights of a pre-norm transformer start: GPT-2's rule, shared by the models that are built here.

Weights are drawn from N(0, 0.02); the two projections of a block that write into the residual stream from
N(0, 0.02 / sqrt(2 * blocks)), so that the variance of the stream does not grow with depth (Radford et al. 2019,
section 2.3). Scales of norms start at one and biases at zero.

Does a vocabulary fit a model? Rows of its tables against ids of the data's tokenizer.

    rows < ids     refused: an id without a row
    rows = ids     as it should be
    rows > ids     padding, as in most published models (rows up to a multiple of 64 or 128), if the ids are the
                   model's own; another tokenizer's ids would look up rows that mean something else

How many ids a model's own tokenizer has is told by the tokenizer.json beside it, where there is one.
"""

import math
from typing import Any

from torch import nn

STD = 0.02
INTO_RESIDUAL = ("attention.proj.weight", "mlp.down.weight", "experts.down.weight")


def draw_weights(model: nn.Module, blocks: int) -> None:
    """Draw every parameter afresh, in place and in the order of `named_parameters`, from the global torch generator.

    blocks: how many there are in the residual stream, at least 1. Layers are told apart by name, as INTO_RESIDUAL says.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 1:
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=STD / math.sqrt(2 * blocks) if name.endswith(INTO_RESIDUAL) else STD)


_MULTIPLE = 128
_SHARE = 8


def is_padding(rows: int, ids: int, own: int | None) -> bool:
    """Whether `rows` may be those of `ids`, padded. own: the ids of the tokenizer beside the rows, None if unknown.

    Unknown, they may if they are a multiple of 64 and no more were added than to the next multiple of 128, or than an
    eighth of the ids: of published models the most is a fortieth.
    """
    if own is not None:
        return own == ids <= rows
    return rows % 64 == 0 and (0 <= rows - ids < _MULTIPLE or 0 <= (rows - ids) * _SHARE <= ids)


def check_vocabulary(config: Any, vocabulary: int, outputs: int | None, own: int | None) -> None:
    """ValueError where the rows that a transformers configuration tells do not fit.

    outputs: what the data wants of every token, None for models that answer for a text. own: ids of the model's own
    tokenizer, None where that is unknown or does not matter.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is None:
        raise ValueError(f"a {config.model_type} has no vocabulary; give the folder of a model of text.")
    remedy = "set data.tokenizer to the model's own folder"
    if vocabulary > rows:
        raise ValueError(f"the data's tokenizer has {vocabulary} ids, the model {rows}; {remedy}.")
    if outputs is None or outputs == rows:
        return
    if outputs > rows:
        raise ValueError(f"the data wants {outputs} outputs, the model gives {rows}; use its tokenizer.")
    if own is not None and own != vocabulary:
        raise ValueError(
            f"the data's tokenizer has {vocabulary} ids, the model's own {own}; {remedy}, or weights: random to take "
            "its sizes alone."
        )


def check_rows(model: Any, vocabulary: int, outputs: int) -> None:
    """The same of a transformers model's tables themselves: a few architectures keep others than they tell."""
    head = model.get_output_embeddings()
    tables = [("embedding", model.get_input_embeddings(), vocabulary), ("head", head, outputs)]
    for what, table, wanted in tables:
        if table is not None and len(table.weight) < wanted:
            raise ValueError(
                f"the data's tokenizer has {wanted} ids, the model's {what} {len(table.weight)} rows; set "
                "data.tokenizer to the model's own folder."
            )
