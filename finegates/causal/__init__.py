"""Causal language models: gates with next-token loss, on a pretrained model or from the start.

Nothing is imported here, so that reading a configuration does not load torch.
"""
