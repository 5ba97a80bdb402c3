"""Attention's two products, for every model that is built here: softmax(q k^T / sqrt(d)) v.

One function, so that whatever is to happen to queries, keys, values and probabilities happens in one place. Grouped
queries (Ainslie et al., arXiv 2305.13245) share a key and a value among query heads that lie beside each other; each is
repeated in front of the products, as transformers does it, so that every kernel of torch serves them.
"""

from torch import Tensor
from torch.nn import functional

__all__ = ["attention"]


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool = True, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """What each query attends to, `[batch, heads, time, width of a head]`, as the queries are.

    key, value: of as many heads, or of a divisor of them. mask: added to the scores before softmax, instead of the
    causal one; give causal=False with it. dropout: of the probabilities; its draws come from the global generator.
    """
    if key.shape[1] != query.shape[1]:
        key, value = _repeated(key, query.shape[1]), _repeated(value, query.shape[1])
    return functional.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout, is_causal=causal)


def _repeated(x: Tensor, heads: int) -> Tensor:
    batch, groups, time, width = x.shape
    return x[:, :, None].expand(batch, groups, heads // groups, time, width).reshape(batch, heads, time, width)
