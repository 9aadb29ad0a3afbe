"""Mixtures of experts: each token goes through a few of many feed-forward networks.

`router` chooses the experts, `experts` has their weights, `dispatch` brings tokens to experts and
results back, and `mixture` combines the three into a block's feed-forward network. Experts have no
capacity, so no token is dropped, and nothing is padded.
"""
