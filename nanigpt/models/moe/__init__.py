"""Mixtures of experts: of many feed-forward networks, each token goes through a few.

`router` chooses them, `experts` has their weights, `dispatch` brings tokens to experts and results
back, and `mixture` puts the three together as a block's feed-forward network. No expert has a
capacity, so no token is dropped, and nothing is padded.
"""
