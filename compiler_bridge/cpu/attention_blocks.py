"""The pieces attention's kernels are made of: products of small blocks, exp2, packing, masks.

All blocks are float32, row-major with a row stride, and lie in per-thread scratch or in the user's tensors.
Scores are kept transposed, [keys, queries]: the softmax then runs down the rows, one query per SIMD lane, and
needs no reduction across lanes; and every product of the forward and backward pass is `multiply_block`.
"""

# pyright: basic, reportCallIssue=false
# Numba gives these functions their types.

from __future__ import annotations

from compiler_bridge.cpu.language import (
    NATIVE_LANES,
    bitcast,
    broadcast_load,
    cast,
    f32,
    fma,
    helper,
    i32,
    iota,
    load,
    offset_pointer,
    outlined_helper,
    splat,
    store,
    transpose8,
    where,
)
from compiler_bridge.cpu.philox import philox_uniform_consecutive

TILE = max(16, 2 * NATIVE_LANES)
"""Lanes of one tile: two registers with AVX2 and AVX-512, four with NEON."""

LANES = NATIVE_LANES
"""Lanes of what is done element by element: one register; a polynomial's constants stay in the others."""

TILE_ROWS = 6
"""Rows of one tile: 6 x 2 accumulators, 2 operands and a broadcast fill AVX2's 16 registers."""

MINUS_INFINITY = f32(float("-inf"))
LOG2_E = f32(1.4426950408889634)
LN_2 = f32(0.6931471805599453)
ROUND_TO_INTEGER = f32(12582912.0)  # 1.5 * 2**23: a sum with it is a whole number, kept in the low bits
EXP2_COEFFICIENTS = tuple(
    f32(c)
    for c in (1.0, 0.6931471824645996, 0.24022647738456726, 0.055503323674201965, 0.00961843691766262,
              0.0013398875016719103, 0.00015353361959569156)
)  # fmt: skip
SMALLEST_EXPONENT = f32(-127.0)


@helper
def float_from_bits(bits):
    """The float32 whose bits an argument table holds as an integer."""
    return bitcast(cast(bits, "int32"), "float32")


@helper
def exp2_of_score(x):
    """2 ** x for x below 128: what softmax needs, in fewer operations than the library's exp2.

    x = n + f with n whole and |f| <= 1/2; 2**f by a polynomial (relative error 7.9e-8), 2**n by adding n to
    the exponent bits. From -127 down to -inf that leaves no bit set: exactly 0. NaN stays NaN.
    """
    x = where(x < SMALLEST_EXPONENT, SMALLEST_EXPONENT, x)
    shifted = x + ROUND_TO_INTEGER
    fraction = x - (shifted - ROUND_TO_INTEGER)
    c0, c1, c2, c3, c4, c5, c6 = EXP2_COEFFICIENTS
    power = fma(fma(fma(fraction, c6, c5), fraction, c4), fraction, c3)
    power = fma(fma(fma(power, fraction, c2), fraction, c1), fraction, c0)
    return bitcast(bitcast(power, "int32") + (bitcast(shifted, "int32") << i32(23)), "float32")


@outlined_helper
def multiply_block(a, a_row, a_depth, b, b_depth, c, c_row, rows, cols, depth, accumulate):
    """C = A @ B, or C += A @ B, for blocks that fit in the nearest caches.

    Shape: A: [rows, depth], element (r, k) at a[r * a_row + k * a_depth]
           B: [depth, cols], element (k, j) at b[k * b_depth + j]
           C: [rows, cols], element (r, j) at c[r * c_row + j]; cols is a multiple of TILE

    A tile of 6 rows of C stays in registers while k runs. Rows missing in the last tile are replaced by the
    last row, computed and stored again.
    """
    for col in range(0, cols, TILE):
        for row in range(0, rows, TILE_ROWS):
            last = min(TILE_ROWS, rows - row) - 1
            r1, r2, r3 = min(1, last) * a_row, min(2, last) * a_row, min(3, last) * a_row
            r4, r5 = min(4, last) * a_row, min(5, last) * a_row
            left = offset_pointer(a, row * a_row)
            right = offset_pointer(b, col)
            p0 = row * c_row + col
            p1, p2, p3 = p0 + min(1, last) * c_row, p0 + min(2, last) * c_row, p0 + min(3, last) * c_row
            p4, p5 = p0 + min(4, last) * c_row, p0 + min(5, last) * c_row
            t0, t1 = first_value(c, p0, accumulate), first_value(c, p1, accumulate)
            t2, t3 = first_value(c, p2, accumulate), first_value(c, p3, accumulate)
            t4, t5 = first_value(c, p4, accumulate), first_value(c, p5, accumulate)
            for k in range(depth):
                vector = load(right, k * b_depth, TILE)
                element = k * a_depth
                t0 = fma(broadcast_load(left, element, TILE), vector, t0)
                t1 = fma(broadcast_load(left, element + r1, TILE), vector, t1)
                t2 = fma(broadcast_load(left, element + r2, TILE), vector, t2)
                t3 = fma(broadcast_load(left, element + r3, TILE), vector, t3)
                t4 = fma(broadcast_load(left, element + r4, TILE), vector, t4)
                t5 = fma(broadcast_load(left, element + r5, TILE), vector, t5)
            store(c, p0, t0)
            store(c, p1, t1)
            store(c, p2, t2)
            store(c, p3, t3)
            store(c, p4, t4)
            store(c, p5, t5)


@helper
def first_value(c, position, accumulate):
    """What a row of a tile starts from: C[position ...] or 0."""
    if accumulate:
        return load(c, position, TILE)
    return splat(f32(0.0), TILE)


@helper
def whole_vectors(count, stride):
    """How many of `count` elements are handled 8 at a time: none when they lie apart."""
    return count // 8 * 8 if stride == 1 else 0


@outlined_helper
def pack_transposed(source, row_stride, col_stride, rows, cols, target, target_row, factor):
    """target[col, row] = source[row, col] * factor, by 8 x 8 transposes in registers.

    Rows are repeated up to the next multiple of 8; `target` has room for them.
    """
    whole = whole_vectors(cols, col_stride)
    for row in range(0, rows, 8):
        last = rows - row - 1
        p0 = row * row_stride
        p1, p2 = p0 + min(1, last) * row_stride, p0 + min(2, last) * row_stride
        p3, p4 = p0 + min(3, last) * row_stride, p0 + min(4, last) * row_stride
        p5, p6 = p0 + min(5, last) * row_stride, p0 + min(6, last) * row_stride
        p7 = p0 + min(7, last) * row_stride
        for col in range(0, whole, 8):
            columns = transpose8(
                load(source, p0 + col, 8), load(source, p1 + col, 8),
                load(source, p2 + col, 8), load(source, p3 + col, 8),
                load(source, p4 + col, 8), load(source, p5 + col, 8),
                load(source, p6 + col, 8), load(source, p7 + col, 8),
            )  # fmt: skip
            position = col * target_row + row
            store(target, position, columns[0] * factor)
            store(target, position + target_row, columns[1] * factor)
            store(target, position + 2 * target_row, columns[2] * factor)
            store(target, position + 3 * target_row, columns[3] * factor)
            store(target, position + 4 * target_row, columns[4] * factor)
            store(target, position + 5 * target_row, columns[5] * factor)
            store(target, position + 6 * target_row, columns[6] * factor)
            store(target, position + 7 * target_row, columns[7] * factor)
    for col in range(whole, cols):
        for row in range(rows):
            element = load(source, row * row_stride + col * col_stride)
            store(target, col * target_row + row, element * factor)


@outlined_helper
def pack_rows(source, row_stride, col_stride, rows, cols, target, target_row):
    """target[row, col] = source[row, col] as float32, zeros from cols up to target_row."""
    whole = whole_vectors(cols, col_stride)
    for row in range(rows):
        first, goal = row * row_stride, row * target_row
        for col in range(0, whole, 8):
            store(target, goal + col, load(source, first + col, 8))
        for col in range(whole, cols):
            store(target, goal + col, load(source, first + col * col_stride))
        for col in range(cols, target_row):
            store(target, goal + col, f32(0.0))


@outlined_helper
def store_scaled_row(source, first, cols, factor, target, position, col_stride):
    """target[position + col * col_stride] = source[first + col] * factor, in target's dtype."""
    if col_stride == 1:
        whole = cols // 8 * 8
        for col in range(0, whole, 8):
            store(target, position + col, load(source, first + col, 8) * factor)
        for col in range(whole, cols):
            store(target, position + col, load(source, first + col) * factor)
    else:
        for col in range(cols):
            store(target, position + col * col_stride, load(source, first + col) * factor)


@outlined_helper
def fill(target, count, value):
    """target[0 .. count) = value; count is a multiple of 8."""
    vector = splat(value, 8)
    for position in range(0, count, 8):
        store(target, position, vector)


@outlined_helper
def mask_causal(scores, scores_row, keys, queries, first_key, first_query):
    """scores[key, query] = -inf where the key comes after the query."""
    for query in range(0, queries, TILE):
        query_numbers = iota(TILE, "int32") + i32(first_query + query)
        for key in range(max(0, first_query + query + 1 - first_key), keys):
            position = key * scores_row + query
            kept = where(query_numbers < i32(first_key + key), MINUS_INFINITY, load(scores, position, TILE))
            store(scores, position, kept)


@helper
def bias_of_number(values):
    """A floating mask is added to the scores, in units of log 2."""
    return values * LOG2_E


@helper
def bias_of_bool(values):
    """A bool mask adds 0 where it is True, -inf elsewhere."""
    return where(values, f32(0.0), MINUS_INFINITY)


def define_add_mask(bias):
    """`add_mask` for one kind of mask; `bias` turns 8 of its elements into what is added."""

    @outlined_helper
    def add_mask(scores, scores_row, keys, queries, mask, position, query_stride, key_stride):
        """scores[key, query] += bias(mask[query, key]), mask at mask[position + query * qs + key * ks].

        Columns beyond the last query, up to a multiple of 8, are written too.
        """
        whole = 0 if query_stride == 0 else whole_vectors(keys, key_stride)
        for query in range(0, queries, 8):
            last = queries - query - 1
            p0 = position + query * query_stride
            p1, p2 = p0 + min(1, last) * query_stride, p0 + min(2, last) * query_stride
            p3, p4 = p0 + min(3, last) * query_stride, p0 + min(4, last) * query_stride
            p5, p6 = p0 + min(5, last) * query_stride, p0 + min(6, last) * query_stride
            p7 = p0 + min(7, last) * query_stride
            for key in range(0, whole, 8):
                columns = transpose8(
                    bias(load(mask, p0 + key, 8)), bias(load(mask, p1 + key, 8)),
                    bias(load(mask, p2 + key, 8)), bias(load(mask, p3 + key, 8)),
                    bias(load(mask, p4 + key, 8)), bias(load(mask, p5 + key, 8)),
                    bias(load(mask, p6 + key, 8)), bias(load(mask, p7 + key, 8)),
                )  # fmt: skip
                target = key * scores_row + query
                add_to_row(scores, target, columns[0])
                add_to_row(scores, target + scores_row, columns[1])
                add_to_row(scores, target + 2 * scores_row, columns[2])
                add_to_row(scores, target + 3 * scores_row, columns[3])
                add_to_row(scores, target + 4 * scores_row, columns[4])
                add_to_row(scores, target + 5 * scores_row, columns[5])
                add_to_row(scores, target + 6 * scores_row, columns[6])
                add_to_row(scores, target + 7 * scores_row, columns[7])
        for key in range(whole, keys):
            first = position + key * key_stride
            if query_stride == 0:  # one number for all queries
                value = splat(bias(load(mask, first)), 8)
                for query in range(0, queries, 8):
                    add_to_row(scores, key * scores_row + query, value)
            else:
                for query in range(queries):
                    target = key * scores_row + query
                    value = bias(load(mask, first + query * query_stride))
                    store(scores, target, load(scores, target) + value)

    return add_mask


@helper
def add_to_row(scores, position, values):
    """scores[position ...] += values, 8 of them."""
    store(scores, position, load(scores, position, 8) + values)


add_number_mask = define_add_mask(bias_of_number)
add_bool_mask = define_add_mask(bias_of_bool)


@outlined_helper
def dropout_lanes(seed, index, dropout, kept_factor):
    """The factors of 8 consecutive scores from element `index` on: 0 with probability dropout."""
    numbers = philox_uniform_consecutive(seed, iota(8, "int64") + index)
    return where(numbers >= dropout, splat(kept_factor, 8), f32(0.0))


@outlined_helper
def fill_dropout_factors(factors, factors_row, keys, queries, seed, index, kv_seq, dropout, kept_factor,
                         square):  # fmt: skip
    """factors[key, query] = what dropout multiplies the weight of element index + query * kv_seq + key with.

    Up to 7 rows below the last key and columns beyond the last query are written too. `square` is room for
    8 x 8 numbers: they are drawn along the keys, then transposed.
    """
    for query in range(0, queries, 8):
        for key in range(0, keys, 8):
            for row in range(8):
                first = index + (query + row) * kv_seq + key
                store(square, 8 * row, dropout_lanes(seed, first, dropout, kept_factor))
            columns = transpose8(
                load(square, 0, 8), load(square, 8, 8), load(square, 16, 8), load(square, 24, 8),
                load(square, 32, 8), load(square, 40, 8), load(square, 48, 8), load(square, 56, 8),
            )  # fmt: skip
            target = key * factors_row + query
            store(factors, target, columns[0])
            store(factors, target + factors_row, columns[1])
            store(factors, target + 2 * factors_row, columns[2])
            store(factors, target + 3 * factors_row, columns[3])
            store(factors, target + 4 * factors_row, columns[4])
            store(factors, target + 5 * factors_row, columns[5])
            store(factors, target + 6 * factors_row, columns[6])
            store(factors, target + 7 * factors_row, columns[7])


@outlined_helper
def multiply_elements(target, factors, count):
    """target *= factors, element by element; count is a multiple of 8."""
    for position in range(0, count, 8):
        store(target, position, load(target, position, 8) * load(factors, position, 8))
