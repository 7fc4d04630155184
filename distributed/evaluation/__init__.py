"""How good a bundle, a predicted loss and a selection are, where labels are known."""
