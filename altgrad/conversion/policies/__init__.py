"""Policies in the words of production stacks: `altgrad policy te_nvfp4 --to te --model FOLDER`.

expression       a policy read, decided layer by layer, written in a target's words
policy_target    what a target is: a new one is a file here, and a line in `expression`
meanings         whether two layers' casts are the same, however they are said
torchao, te, megatron   the targets
policy_report    what was written, as data and as a page
"""
