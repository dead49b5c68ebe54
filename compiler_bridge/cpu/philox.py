"""Random numbers by counting: Philox4x32-10.

    block(b) = ten rounds of a keyed bijection on the counter (b, 0), 128 bits
    word(i)  = word i mod 4 of block(i // 4)
    uniform  = (word >> 8) 2^-24, in [0, 1)

The number of an element depends on the seed and the element's index only: not on vector width, threads
or order, so that a backward pass draws the forward's numbers again instead of storing them.

Source:  Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011)
"""

# pyright: basic
# Numba gives these functions their types.

from __future__ import annotations

from compiler_bridge.cpu.language import (
    bitcast,
    cast,
    extract,
    helper,
    iota_like,
    like,
    low_half,
    mulhi_u32,
    outlined_helper,
    reverse_quads,
    splat,
    where,
)

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
KEY_STEP_0, KEY_STEP_1 = 0x9E3779B9, 0xBB67AE85
LOW_WORD = 0xFFFFFFFF


@helper
def round_keys(seed, number):
    """The two key words of a round, in int64."""
    low = ((seed & LOW_WORD) + number * KEY_STEP_0) & LOW_WORD
    high = (((seed >> 32) & LOW_WORD) + number * KEY_STEP_1) & LOW_WORD
    return low, high


@helper
def unit_interval(word):
    """The upper 24 bits of each uint32 as a float32 in [0, 1)."""
    return cast(bitcast(word >> 8, "int32"), "float32") * 5.9604644775390625e-08  # 2^-24


@outlined_helper
def philox_words(seed, index):
    """The uint32 word of each element of an int64 vector of indices, in any order: one block a lane."""
    block = index >> 2
    c0, c1 = cast(block, "uint32"), cast(block >> 32, "uint32")
    c2, c3 = like(c0, 0), like(c0, 0)
    for number in range(10):
        low, high = round_keys(seed, number)
        upper_0, lower_0 = mulhi_u32(c0, MULTIPLIER_0), c0 * MULTIPLIER_0
        upper_1, lower_1 = mulhi_u32(c2, MULTIPLIER_1), c2 * MULTIPLIER_1
        c0, c2 = upper_1 ^ c1 ^ low, upper_0 ^ c3 ^ high
        c1, c3 = lower_1, lower_0
    position = cast(index, "int32") & 3
    first = where(position == 0, c0, c1)
    return where(position < 2, first, where(position == 2, c2, c3))


@helper
def philox_words_consecutive(seed, index):
    """The words of the indices start, start + 1, ... with start a multiple of 4, of at least 4 lanes.

    The state of all blocks lies in one vector, in element order: seen as uint64, an even lane holds the
    words (c1, c0) of a block and the odd lane after it (c3, c2). One round is

        new = swapped(product of the low words) ^ (c1 or c3) ^ key

    where a product's halves change places, and the two lanes of a block too: the words of a block
    in reverse order.
    """
    lanes = iota_like(low_half(index))
    even = (lanes & 1) == 0
    state = cast(where(even, (lanes >> 1) + (extract(index, 0) >> 2), 0), "uint64")
    multiplier = cast(where(even, like(lanes, MULTIPLIER_0), MULTIPLIER_1), "uint64")
    key = key_lanes(even, lanes, seed & LOW_WORD, (seed >> 32) & LOW_WORD)
    step = key_lanes(even, lanes, KEY_STEP_0, KEY_STEP_1)
    for _ in range(10):
        swapped = reverse_quads(bitcast((state & LOW_WORD) * multiplier, "uint32"))
        state = bitcast(swapped ^ bitcast(state >> 32, "uint32") ^ key, "uint64")
        key = key + step
    return bitcast(state, "uint32")


@helper
def key_lanes(even, lanes, low, high):
    """The uint32 lanes low, 0, high, 0, low, 0, high, 0, ..."""
    return bitcast(cast(where(even, like(lanes, low), high), "uint64"), "uint32")


@helper
def philox_uniform(seed, index):
    """A float32 in [0, 1) for each element of an int64 vector of element indices.

    Args:  seed: int64
    """
    return unit_interval(philox_words(seed, index))


@helper
def philox_uniform_consecutive(seed, index):
    """philox_uniform for consecutive indices: four times cheaper where the first is a multiple of 4."""
    if (extract(index, 0) & 3) == 0:
        return unit_interval(philox_words_consecutive(seed, index))
    return unit_interval(philox_words(seed, index))


@helper
def philox_uniform_scalar(seed, index):
    """philox_uniform of one int64 index."""
    return extract(philox_uniform(seed, splat(index, 4)), 0)
