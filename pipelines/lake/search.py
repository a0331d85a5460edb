"""The compiled loops of the dedup index: find digests in a sorted run, and merge two runs.

Digests are uniform (SipHash), so interpolation search guesses a position from the value and needs a handful of reads,
however long the run is. Compiling takes seconds the first time; numba then caches the result on disk.

A digest is a pair of words (high, low), both uint64. All arrays here are of dtype uint64 and shape (n,), unless said
otherwise.
"""
# pyright: reportMissingParameterType=false
# (numba infers the types of a compiled loop from its arguments)

from numba import njit, uint64

from pipelines.contract.buffers import borrow

_GUESSES = 4


@njit(cache=True, nogil=True)
def lower_bound(highs, value, start):
    """Return the first position >= start whose word is >= value; len(highs) if there is none.

    `highs` is sorted: uint64, shape (n,). The result is that of `numpy.searchsorted` (side="left") from `start` on, by
    at most four steps of interpolation and then by bisection.
    """
    low, high = start, len(highs)
    for _ in range(_GUESSES):
        if high - low < 64:
            break
        # The guess, and a margin around it that almost surely contains the value in a uniform array.
        span = float(high - low)
        bottom, top = float(highs[low]), float(highs[high - 1])
        if float(value) <= bottom or top <= bottom:
            break
        guess = low + int(span * min((float(value) - bottom) / (top - bottom), 1.0))
        margin = int(4.0 * span**0.5) + 1
        left, right = max(low, guess - margin), min(high - 1, guess + margin)
        if highs[left] < value:
            low = left
        else:
            high = left + 1
            continue
        if highs[right] >= value:
            high = right + 1
        else:
            low = right
    while low < high:
        middle = (low + high) >> 1
        if highs[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def find(run_highs, run_lows, highs, lows, positions):
    """Set positions[i] to the position of the digest (highs[i], lows[i]) in a run, where it is still -1.

    `run_highs` and `run_lows`, shape (rows,), are the run; `highs` and `lows`, shape (n,), the digests looked for. Both
    are sorted by (high, low). `positions`, int64, shape (n,), is written in place: it stays -1 where the run does not
    have the digest.
    """
    run_highs = borrow(run_highs)
    at = 0
    for i in range(len(highs)):
        if positions[i] >= 0:
            continue
        at = lower_bound(run_highs, highs[i], at)
        j = at
        while j < len(run_highs) and run_highs[j] == highs[i]:
            if run_lows[j] == lows[i]:
                positions[i] = j
                break
            j += 1


@njit(cache=True, nogil=True)
def merge(a_high, a_low, a_payload, b_high, b_low, b_payload, high, low, payload):
    """Merge runs `a` and `b`, sorted by (high, low), into `high`, `low` and `payload`; return the number of rows.

    The outputs have shape (rows of a + rows of b,) and are written in place. A row of `a` precedes an equal one of `b`.
    """
    i, j, n = 0, 0, 0
    while i < len(a_high) or j < len(b_high):
        take_a = j == len(b_high) or (
            i < len(a_high)
            and (a_high[i] < b_high[j] or (a_high[i] == b_high[j] and uint64(a_low[i]) <= uint64(b_low[j])))
        )
        if take_a:
            high[n], low[n], payload[n] = a_high[i], a_low[i], a_payload[i]
            i += 1
        else:
            high[n], low[n], payload[n] = b_high[j], b_low[j], b_payload[j]
            j += 1
        n += 1
    return n
