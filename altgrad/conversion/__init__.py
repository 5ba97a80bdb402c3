"""Conversion: a trained model quantised at rest, without training it, or exported as it is.

source             a model's tensors, and which cast each gets under a policy
saving             every tensor cast and measured, written if asked; a run as a Hugging Face folder
export             a checkpoint in the layout of serving libraries, read again and compared
conversion_report  what each cast kept, as data and as a page
format_comparison  some formats on one tensor or distribution
direct_cast        a language model under recipes, without training: `arms` has the nets, `windows` the text
mismatch           two policies on one set of weights, `causes` the casts between them, by `mixed_net`
"""
