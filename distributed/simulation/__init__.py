"""Active-learning cycles on labelled data: does what a strategy selects make a better model?"""
