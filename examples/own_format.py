"""A format of your own: the values of a table, by code; it goes wherever a format's name goes."""

import torch
from torch import nn

import altgrad
from altgrad.formats import TableFormat
from altgrad.quantize import round_to, spacing

# Powers of two and their halves between them, 3 bits and a sign: code 0 is 0, codes 8 to 15 are negative.
positive = [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3]
table = TableFormat((*positive, *(-value for value in positive)))  # in YAML: format: {values: [0, 0.25, ...]}

x = torch.tensor([0.3, -0.6, 1.2, 2.4, 9.0])
print(round_to(x, table))  # what is beyond the largest value becomes it
print(spacing(x, table))  # the gap around each value

model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
cast = {"format": table, "scaling": {"kind": "current", "granularity": "channel"}}
altgrad.quantize_model(model, altgrad.PrecisionPolicy.uniform(weight=cast, input=cast))
print(model(torch.randn(2, 16)))
