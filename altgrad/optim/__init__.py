"""Optimizers that request, storage that writes, parameter groups by name, schedules."""

from altgrad.optim.adamw import AdamW
from altgrad.optim.grid_optim import GridOptim
from altgrad.optim.groups import parameter_groups
from altgrad.optim.lion import Lion
from altgrad.optim.madam import Madam
from altgrad.optim.manifold_adamw import ManifoldAdamW
from altgrad.optim.muon import Muon
from altgrad.optim.optimizer import Optimizer, OptimizerSpec
from altgrad.optim.request import Request, Update
from altgrad.optim.schedule import Schedule
from altgrad.optim.sgd import SGD
from altgrad.optim.stand_ins import laid_as, whole_state
from altgrad.optim.storage import Storage
from altgrad.optim.uncompiled import wait_for_compiler
from altgrad.optim.whole_tensor import is_sharded, make_dense, own_part, whole_tensor
from altgrad.optim.wrapping import StoredOptimizer, stored

__all__ = [
    "SGD", "AdamW", "GridOptim", "Lion", "Madam", "ManifoldAdamW", "Muon", "Optimizer", "OptimizerSpec", "Request",
    "Schedule", "Storage", "StoredOptimizer", "Update", "is_sharded", "laid_as",
    "make_dense", "own_part", "parameter_groups", "stored", "whole_state", "whole_tensor",
]  # fmt: skip

wait_for_compiler()
