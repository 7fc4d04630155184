"""Sizes of the work: images of a forward pass, and how many images are worth a process. Imports nothing.

# S input size (px)
"""

# Matrix kernels compute rows in tiles, and the rows left over with another order of additions: the same image had
# predicted losses 3e-8 apart at two places of a batch of 7. Multiples of 4, up to 136 rows, showed none (MKL, AVX-512).
ROW_TILE = 8
# Passes of these rows, twice as many and so on give a row the same bits; one of 8 may not: on one thread, oneDNN has
# another kernel for the paper's hourglass then.
_SHORTEST_PASS = 16

# On CPUs a pass of more pixels leaves the caches, and a smaller one gains nothing; a GPU wants as much as it can hold.
_PASS_PIXELS = {"cpu": 2**20, "cuda": 2**24}
_MOST_IMAGES = {"cpu": 64, "cuda": 1024}
_START_PIXELS = 1000 * 64**2  # scored in the seconds that a process on a CPU takes to start


def choose_batch_size(input_size: int, *, device: str) -> int:
    """Images of a forward pass: at 256 px 16 on a CPU and 256 on a GPU, at 64 px 64 and 1024."""
    kind = device.partition(":")[0]
    images = min(_PASS_PIXELS[kind] // input_size**2, _MOST_IMAGES[kind])
    return max(_SHORTEST_PASS, round_up(images))


def round_up(num_rows: int, *, to: int = ROW_TILE) -> int:
    """The next multiple."""
    return -(-num_rows // to) * to


def rows_of_pass(num_rows: int, *, batch_size: int) -> int:
    """Rows that a CPU computes for these: all of a batch, or as many as give a row the same bits as a full batch."""
    return min(batch_size, round_up(num_rows, to=_SHORTEST_PASS))


def rows_worth_an_actor(input_size: int) -> int:
    """Images that one CPU scores while another process starts: 62 at 256 px, 1000 at 64 px."""
    return max(1, _START_PIXELS // input_size**2)
